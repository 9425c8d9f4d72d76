"""The last answer of each kind of work, kept for a server that lost it and asks the same again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict

from nnunetv2_federated.federation.errors import CheckpointError, SiteError
from nnunetv2_federated.federation.files import replacing
from nnunetv2_federated.federation.messages import WEIGHTS
from nnunetv2_federated.flower.records import ARRAYS, CONFIG, pack_payload

_FORMAT = 1


class AnswerLostError(SiteError):
    """An answer is not kept any more."""


class KeptAnswers:
    """A private file for each kind of work, with the question that was answered in its first line.

    Parameters
    ----------
    folder
        Private, of the site.
    kinds
        Kinds of work.
    """

    def __init__(self, folder: Path, kinds: Sequence[str]) -> None:
        self._files = {kind: folder / f"{kind.replace(' ', '_')}.bin" for kind in kinds}

    def save(self, kind: str, question: Mapping[str, Any], answer: RecordDict) -> None:
        """Replace the answer of a kind.

        Parameters
        ----------
        kind
            Kind of work.
        question
            What was asked, as JSON; ``run`` is the identifier of the run.
        answer
            What is answered: a payload, and at most one array.
        """
        arrays = [a for record in answer.array_records.values() for a in record.values()]
        data = arrays[0].data if arrays else b""
        header = {
            "format": _FORMAT,
            **question,
            "payload": answer.config_records[CONFIG]["payload"],
            "array": [arrays[0].dtype, list(arrays[0].shape), arrays[0].stype] if arrays else None,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        with (
            replacing(self._files[kind], private=True) as temporary,
            temporary.open("wb") as file,
        ):
            file.write(json.dumps(header).encode() + b"\n")
            file.write(data)

    def load(self, kind: str, question: Mapping[str, Any]) -> RecordDict:
        """Return the answer to a question.

        Raises
        ------
        AnswerLostError
            If it is not kept.
        CheckpointError
            If its file is damaged.
        """
        header = self._read_header(kind)
        if header is None or {key: header.get(key) for key in question} != dict(question):
            raise AnswerLostError("the answer is not kept")
        content = RecordDict({CONFIG: pack_payload(header["payload"])})
        with self._files[kind].open("rb") as file:
            file.readline()
            data = file.read()
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise CheckpointError(f"{self._files[kind]} is damaged")
        if header["array"] is not None:
            dtype, shape, stype = header["array"]
            content[ARRAYS] = ArrayRecord({WEIGHTS: Array(dtype, tuple(shape), stype, data)})
        return content

    def drop_others(self, run: str) -> None:
        """Delete the answers of other runs."""
        for kind, file in self._files.items():
            header = self._read_header(kind)
            if header is not None and header["run"] != run:
                file.unlink()

    def drop(self) -> None:
        """Delete all answers."""
        for file in self._files.values():
            file.unlink(missing_ok=True)

    def _read_header(self, kind: str) -> dict[str, Any] | None:
        try:
            with self._files[kind].open("rb") as file:
                return dict(json.loads(file.readline()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            return {"run": None}
