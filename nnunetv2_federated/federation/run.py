"""A run: every choice resolved, as it is written to ``run.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.choice import require
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.files import format_problem
from nnunetv2_federated.federation.names import check_fold, check_name
from nnunetv2_federated.federation.queue import Folds, check_queue
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyTerms


@dataclass(frozen=True)
class SiteCases:
    """One site: a dataset of nnU-Net and the cases of it that the site holds."""

    name: str
    dataset: str
    training_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.training_cases:
            raise SettingsError(
                f"site {self.name} has no training case in this fold: use fewer sites, raise "
                "--min-cases or correct the sites file."
            )


@dataclass(frozen=True)
class Run:
    """A federation with every choice made, as kept in ``federation/run.json``."""

    dataset: str
    configuration: str
    fold: int | str
    trainer: str
    plans_name: str
    device: str
    settings: FederationSettings
    sites: tuple[SiteCases, ...]
    disable_checkpointing: bool = False
    pretrained_weights: str | None = None
    remote_sites: tuple[str, ...] = ()
    """Names of sites on other machines, with datasets of their own; ``sites`` is empty then."""
    run_id: str = ""
    """Identifier of a run with remote sites; a run that is continued keeps it."""
    npz: bool = False
    """Save the softmax outputs of the full validation, where it is done."""
    queue: Mapping[str, Folds] = field(default_factory=dict)
    """Folds by configuration of the trainings that were begun by one command, this one among them;
    empty for a training of its own."""
    num_gpus: int = 1
    """GPUs on which each site of this machine trains."""
    study: StudyTerms | None = None
    """Study over a network that this training is a trial of."""
    trial: int | None = None
    """Number of the trial."""

    def __post_init__(self) -> None:
        for what in ("configuration", "trainer", "plans_name"):
            check_name(what, getattr(self, what))
        check_fold(self.fold)
        if self.queue:
            check_queue(self.queue, self.configuration, self.fold)
        count = len(self.site_names)
        if len(set(self.site_names)) < count:
            raise SettingsError("two sites have the same name; give each its own.")
        for flag, value in (
            ("--sites-per-round", self.settings.sites_per_round),
            ("--min-replies", self.settings.min_replies),
        ):
            require(
                value is None or value <= count,
                flag,
                value,
                f"at most the number of sites ({count})",
            )

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of all sites, on this machine or on others."""
        return self.remote_sites or tuple(site.name for site in self.sites)

    @property
    def trainings(self) -> Mapping[str, Folds]:
        """Folds by configuration of all trainings of the queue, or of this one alone."""
        return self.queue or {self.configuration: (self.fold,)}

    def needed(self, count: int) -> int:
        """Return how many of ``count`` sites this run needs in a round."""
        return self.settings.needed(count, remote=bool(self.remote_sites))

    def to_json(self) -> str:
        """Return the run as JSON that :meth:`from_json` reads."""
        return json.dumps({"format": _RUN_FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Read what :meth:`to_json` wrote; unknown keys and other formats are refused."""
        raw: dict[str, Any] = json.loads(text)
        found = raw.pop("format", 0)
        if found != _RUN_FORMAT:
            problem = format_problem(int(found), _RUN_FORMAT, "this installation")
            raise SettingsError(f"it has {problem}")
        raw["settings"] = FederationSettings(**raw["settings"])
        for site in raw["sites"]:
            for key in ("training_cases", "validation_cases"):
                site[key] = tuple(site[key])
        raw["sites"] = tuple(SiteCases(**site) for site in raw["sites"])
        raw["remote_sites"] = tuple(raw["remote_sites"])
        if raw["study"] is not None:
            raw["study"] = StudyTerms.from_json(json.dumps(raw["study"]))
        raw["queue"] = {name: tuple(folds) for name, folds in raw["queue"].items()}
        return cls(**raw)


RUN_FILE = "run.json"


_RUN_FORMAT = 5


def read_run(folder: Path) -> Run:
    """Read the run kept in a federation folder.

    Raises
    ------
    SettingsError
        If the folder holds no readable ``run.json``.
    """
    path = folder / RUN_FILE
    try:
        return Run.from_json(path.read_text())
    except (
        *(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError),
        *(SettingsError, SiteError),
    ) as error:
        what = str(error).rstrip(".")
        raise SettingsError(
            f"{path} is not a readable run: {what}; restore it from a backup, or start anew "
            "without --c."
        ) from error
