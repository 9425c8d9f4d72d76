"""What a federation is told: frozen, validated when built, plain JSON on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

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


LR_SCHEDULES = ("trainer", "poly")
TRANSPORT_DTYPES = ("float32", "float16", "bfloat16")
OVERSIZED_UPDATE = ("refuse", "clip")
BACKENDS = ("in-process", "ray")
"""What runs the sites of one machine."""

_ABOVE_0 = math.nextafter(0.0, 1.0)
_BELOW_1 = math.nextafter(1.0, 0.0)


def require(ok: bool, flag: str, value: object, allowed: str) -> None:
    """Raise ``SettingsError`` that a flag must be what is allowed, unless it is."""
    if not ok:
        raise SettingsError(f"{flag} {value}: must be {allowed}.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(str(value)))


@dataclass(frozen=True)
class FederationSettings:
    """How a federation trains. ``None`` leaves a value to the trainer or the plans."""

    rounds: int = 120
    local_epochs: int = 1
    iterations_per_epoch: int | None = None
    """``None``: the trainer's own, 250 for ``nnUNetTrainer``."""
    val_iterations: int | None = None
    """``None``: the trainer's own, 50 for ``nnUNetTrainer``."""
    batch_size: int | None = None
    """``None``: the plans'."""
    initial_lr: float | None = None
    """``None``: the trainer's own, 0.01 for ``nnUNetTrainer``."""
    lr_schedule: str = "trainer"
    """``trainer`` keeps the trainer's own schedule with rounds in place of epochs (a warm-up, a
    cosine; ``nnUNetTrainer`` has poly), ``poly`` takes ``(1 - round / rounds) ** 0.9`` for all."""
    momentum: float | None = None
    """``None``: the trainer's own, 0.99 for ``nnUNetTrainer``."""
    weight_decay: float | None = None
    """``None``: the trainer's own, 3e-5 for ``nnUNetTrainer``."""
    local_momentum: str = "keep"
    batchnorm: str = "average"
    """Of networks that have BatchNorm: ``average`` its weights and running statistics like all
    others, ``local`` keeps each site's own (FedBN, Li et al. 2021, arXiv:2102.07623), ``group``
    builds the network with GroupNorm in its place."""
    strategy: str = "fedavg"
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    weighting: str = "cases"
    sites_per_round: int | None = None
    min_replies: int | None = None
    """``None``: see :meth:`needed`."""
    max_update_norm: float | str = "auto"
    """Longest update (L2 norm of trained minus sent weights) that is aggregated: a number, ``none``
    for no limit of one's own, or ``auto`` for ten times the usual, from three sites on."""
    oversized_update: str = "refuse"
    """What becomes of a longer one: ``refuse`` it, and the site has failed in this round, or
    ``clip`` it to the limit."""
    transport_dtype: str = "float32"
    """Of weights on the way; 16 bits carry a site's change of the weights, not the weights."""
    global_validation: bool = True
    """Validate the global model, at the sites, before each round's training."""
    resident_trainers: int | None = None
    round_deadline: float | None = None
    """Seconds a round may take; ``None`` to wait for every site as long as it is connected."""
    wait_for_sites: float = 600.0
    """Seconds to wait for sites on other machines before a round begins without them, or fails."""
    answer_deadline: float = 86400.0
    """Seconds to wait at most for an answer where ``round_deadline`` does not say less."""
    seed: int = 12345

    def __post_init__(self) -> None:
        self._check_counts()
        norm = self.max_update_norm
        fits = norm in ("auto", "none") or (_is_number(norm) and float(norm) > 0)
        require(fits, "--max-update-norm", norm, "auto, none or a number above 0")
        for name, low, high, allowed in (
            ("initial_lr", _ABOVE_0, 1.0, "above 0 and at most 1; nnU-Net has 0.01"),
            ("momentum", 0.0, _BELOW_1, "at least 0 and below 1; nnU-Net has 0.99"),
            ("weight_decay", 0.0, _BELOW_1, "at least 0 and below 1; nnU-Net has 3e-5"),
        ):
            value = getattr(self, name)
            fits = value is None or (_is_number(value) and low <= value <= high)
            require(fits, _flag(name), value, allowed)
        for name, choices in (
            ("local_momentum", ("keep", "reset")),
            ("batchnorm", ("average", "local", "group")),
            ("lr_schedule", LR_SCHEDULES),
            ("weighting", ("cases", "uniform")),
            ("transport_dtype", TRANSPORT_DTYPES),
            ("oversized_update", OVERSIZED_UPDATE),
            ("strategy", STRATEGIES),
            ("global_validation", (True, False)),
        ):
            value = getattr(self, name)
            allowed = "one of " + ", ".join(map(str, choices))
            require(
                value in choices and type(value) is type(choices[0]), _flag(name), value, allowed
            )
        for name in ("round_deadline", "wait_for_sites", "answer_deadline"):
            seconds = getattr(self, name)
            fits = (seconds is None and name == "round_deadline") or (
                _is_number(seconds) and seconds > 0
            )
            require(fits, _flag(name), seconds, "a number of seconds above 0")
        options = self.strategy_options
        numbers = isinstance(options, Mapping) and all(map(_is_number, options.values()))
        require(numbers, "--strategy-option", options, "finite numbers by name")

    def needed(self, count: int, *, remote: bool) -> int:
        """Return how many of ``count`` sites a round cannot do without.

        Where ``min_replies`` says nothing, these are more than half of sites on other machines, so
        that no single one of three or more can end a federation; and all on this machine, where a
        site that fails is a mistake to be seen.
        """
        if self.min_replies is not None:
            return min(self.min_replies, count)
        return count // 2 + 1 if remote else count

    def _check_counts(self) -> None:
        optional = (
            "iterations_per_epoch",
            "val_iterations",
            "batch_size",
            "sites_per_round",
            "min_replies",
            "resident_trainers",
        )
        needed = ("rounds", "local_epochs", "seed")
        for name in (*needed, *optional):
            value = getattr(self, name)
            low = 0 if name == "seed" else 1
            ok = (value is None and name in optional) or (type(value) is int and value >= low)
            require(ok, _flag(name), value, f"a whole number of at least {low}")
        if self.sites_per_round and self.min_replies:
            allowed = f"at most --sites-per-round ({self.sites_per_round})"
            fits = self.min_replies <= self.sites_per_round
            require(fits, "--min-replies", self.min_replies, allowed)


def setting_names() -> tuple[str, ...]:
    """Names of all :class:`FederationSettings`, as the settings file spells them."""
    return tuple(f.name for f in fields(FederationSettings))
