"""What a federation is told: frozen, validated when built, plain JSON on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError

STRATEGIES = (
    "fedavg",
    "fedavgm",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
)


def _require(ok: bool, flag: str, value: object, allowed: str) -> None:
    if not ok:
        raise SettingsError(f"{flag} {value}: must be {allowed}.")


@dataclass(frozen=True)
class FederationSettings:
    """How a federation trains. ``None`` leaves a value to the trainer or the plans."""

    rounds: int = 120
    local_epochs: int = 1
    iterations_per_epoch: int = 250
    val_iterations: int = 50
    batch_size: int | None = None
    """``None``: the plans'."""
    initial_lr: float | None = None
    """``None``: the trainer's own, 0.01 for ``nnUNetTrainer``."""
    momentum: float | None = None
    """``None``: the trainer's own, 0.99 for ``nnUNetTrainer``."""
    weight_decay: float | None = None
    """``None``: the trainer's own, 3e-5 for ``nnUNetTrainer``."""
    local_momentum: str = "keep"
    strategy: str = "fedavg"
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    weighting: str = "cases"
    sites_per_round: int | None = None
    min_replies: int | None = None
    global_validation: bool = True
    """Validate the global model, at the sites, before each round's training."""
    resident_trainers: int | None = None
    seed: int = 12345

    def __post_init__(self) -> None:
        for name, low in (
            ("rounds", 1),
            ("local_epochs", 1),
            ("iterations_per_epoch", 1),
            ("val_iterations", 1),
            ("batch_size", 1),
            ("sites_per_round", 1),
            ("min_replies", 1),
            ("resident_trainers", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            _require(
                value is None or (type(value) is int and value >= low),
                flag,
                value,
                f"a whole number of at least {low}",
            )
        _require(
            self.initial_lr is None or 0 < self.initial_lr <= 1,
            "--initial-lr",
            self.initial_lr,
            "above 0 and at most 1; nnU-Net's default is 0.01",
        )
        _require(
            self.momentum is None or 0 <= self.momentum < 1,
            "--momentum",
            self.momentum,
            "at least 0 and below 1; nnU-Net's default is 0.99",
        )
        _require(
            self.weight_decay is None or 0 <= self.weight_decay < 1,
            "--weight-decay",
            self.weight_decay,
            "at least 0 and below 1; nnU-Net's default is 3e-5",
        )
        _require(
            self.local_momentum in ("keep", "reset"),
            "--local-momentum",
            self.local_momentum,
            "keep or reset",
        )
        _require(
            self.weighting in ("cases", "uniform"),
            "--weighting",
            self.weighting,
            "cases or uniform",
        )
        _require(
            self.strategy in STRATEGIES,
            "--strategy",
            self.strategy,
            "one of " + ", ".join(STRATEGIES),
        )
        if self.sites_per_round and self.min_replies:
            _require(
                self.min_replies <= self.sites_per_round,
                "--min-replies",
                self.min_replies,
                f"at most --sites-per-round ({self.sites_per_round})",
            )


@dataclass(frozen=True)
class SiteSettings:
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
    plans: str
    device: str
    settings: FederationSettings
    sites: tuple[SiteSettings, ...]
    disable_checkpointing: bool = False
    pretrained_weights: str | None = None

    def __post_init__(self) -> None:
        count = len(self.sites)
        for flag, value in (
            ("--sites-per-round", self.settings.sites_per_round),
            ("--min-replies", self.settings.min_replies),
        ):
            _require(
                value is None or value <= count,
                flag,
                value,
                f"at most the number of sites ({count})",
            )

    def to_json(self) -> str:
        """Serialise, readable by :meth:`from_json`."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Read what :meth:`to_json` wrote; unknown keys are refused."""
        raw: dict[str, Any] = json.loads(text)
        raw["settings"] = FederationSettings(**raw["settings"])
        raw["sites"] = tuple(
            SiteSettings(
                site["name"],
                site["dataset"],
                tuple(site["training_cases"]),
                tuple(site["validation_cases"]),
            )
            for site in raw["sites"]
        )
        return cls(**raw)


RUN_FILE = "run.json"


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
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{path} is not a readable run: {error}") from error


def setting_names() -> tuple[str, ...]:
    """Names of all :class:`FederationSettings`, as the settings file spells them."""
    return tuple(f.name for f in fields(FederationSettings))
