"""One tested case of a comparison, and ``tests.json``, the file with all of a model's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.text import clean


@dataclass(frozen=True)
class TestedCase:
    """What a model predicted for one case, compared with the reference."""

    __test__: ClassVar = False  # for pytest, which takes a class of this name for tests
    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="ignore")
    case: str
    """Case identifier of nnU-Net."""
    site: str
    """Site that the case belongs to."""
    subset: Literal["Tr", "Ts"]
    """Whether the case is in ``imagesTr`` or in ``imagesTs``."""
    score: float | None
    """Headline metric of this case alone, higher is better; ``None`` if it is not defined."""
    shown: str
    """Prediction in a few words, written above a picture of the case."""
    patient: str | None = None
    """Patient of the case; ``None`` if patients are not known."""
    stratum: int | str | None = None
    """Cases are resampled within their stratum, for instance their class; ``None`` for one."""
    truth: str | None = None
    """Class of the case, of a classification."""
    prediction: str | None = None
    """File with the predicted segmentation, in the model's folder of predictions."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """All that the tester noted of the case; its ``measure`` takes metrics from these."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Check the record of a tester, with ``site``, ``subset`` and ``patient`` added to it.

        Raises
        ------
        ValueError
            If a value is missing or of another type.
        """
        # as JSON: pydantic is as strict with types there, and takes an object for a dataclass
        text = json.dumps({**record, "record": dict(record)})
        tested: Self = TypeAdapter(cls).validate_json(text)
        return tested


def write_tested_cases(path: Path, cases: Sequence[TestedCase]) -> None:
    """Write ``tests.json``: a list with the record of each case."""
    write_atomically(path, json.dumps([dict(case.record) for case in cases]))


def read_tested_cases(path: Path) -> list[TestedCase]:
    """Read ``tests.json``.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is damaged, or a value does not fit.
    """
    try:
        return [TestedCase.of(record) for record in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            what = str(error)
        raise CheckpointError(
            f"{path} cannot be read ({clean(what, 200)}): delete it, and the model is tested again."
        ) from error
