"""Settings of a federation: frozen, validated when built, plain JSON on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from nnunetv2_federated.federation.choice import (
    DEFAULT_SEED,
    Allowed,
    Choice,
    Choices,
    Count,
    Seconds,
    Seed,
    names_of,
    record,
    require,
)
from nnunetv2_federated.federation.personal import PersonalChoices
from nnunetv2_federated.federation.privacy import PrivacyChoices

Strategy = Literal[
    "fedavg",
    "fedavgm",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

_LearningRate = Annotated[
    float, Field(gt=0, le=1), Allowed("above 0 and at most 1; nnU-Net has 0.01")
]
_Momentum = Annotated[float, Field(ge=0, lt=1), Allowed("at least 0 and below 1; nnU-Net has 0.99")]
_WeightDecay = Annotated[
    float, Field(ge=0, lt=1), Allowed("at least 0 and below 1; nnU-Net has 3e-5")
]
_UpdateNorm = Annotated[
    Literal["auto", "none"] | Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Allowed("auto, none or a number above 0"),
]
_Options = Annotated[
    Mapping[str, int | Annotated[float, Field(allow_inf_nan=False)]],
    Allowed("finite numbers by name"),
]


OF_THE_BOUND = ("max_update_norm", "oversized_update")
"""Settings of the bound of updates."""
CHANGEABLE = ("resident_trainers", *OF_THE_BOUND)
"""Settings that may change when a run continues. The bound of updates may, because a run that
refused a site's update would otherwise refuse it again."""


@record
class Waits(Choices):
    """How long sites on other machines are waited for."""

    group: ClassVar[str] = "sites on other machines"

    wait_for_sites: Annotated[
        Seconds,
        Choice(
            "how long to wait for sites on other machines before a round begins without them, or "
            "fails",
            "SECONDS",
        ),
    ] = 600.0
    answer_deadline: Annotated[
        Seconds,
        Choice(
            "longest to wait for any answer where --round-deadline does not say less; a silent "
            "site is then left out and named",
            "SECONDS",
        ),
    ] = 86400.0


@record
class FederationSettings(Waits, PrivacyChoices, PersonalChoices):
    """How a federation trains. ``None`` leaves a value to the trainer or the plans."""

    group: ClassVar[str] = "federation"

    rounds: Annotated[Count, Choice("rounds of the federation", "N")] = 120
    local_epochs: Annotated[Count, Choice("nnU-Net epochs of a site in a round", "N")] = 1
    iterations_per_epoch: Annotated[
        Count | None,
        Choice("training iterations of an epoch", "N", unset="the trainer's, 250"),
    ] = None
    val_iterations: Annotated[
        Count | None,
        Choice("validation iterations of an epoch", "N", unset="the trainer's, 50"),
    ] = None
    batch_size: Annotated[
        Count | None, Choice("images or patches of a batch", "N", unset="the plans'")
    ] = None
    initial_lr: Annotated[
        _LearningRate | None,
        Choice("learning rate of the first round", "X", unset="the trainer's, 0.01"),
    ] = None
    lr_schedule: Annotated[
        Literal["trainer", "poly"],
        Choice(
            "learning rate by round: 'trainer' keeps the trainer's own schedule with rounds in "
            "place of epochs (a warm-up, a cosine; nnUNetTrainer has poly), 'poly' takes nnU-Net's "
            "(1 - round / rounds) ** 0.9 in its place; parameter groups keep their ratios"
        ),
    ] = "trainer"
    momentum: Annotated[
        _Momentum | None, Choice("momentum of SGD", "X", unset="the trainer's, 0.99")
    ] = None
    weight_decay: Annotated[
        _WeightDecay | None, Choice("weight decay", "X", unset="the trainer's, 3e-5")
    ] = None
    local_momentum: Annotated[
        Literal["keep", "reset"], Choice("what a site does with its momentum between rounds")
    ] = "keep"
    batchnorm: Annotated[
        Literal["average", "local", "group"],
        Choice(
            "BatchNorm, in networks that have it: 'average' its weights and running statistics "
            "like all others, 'local' keeps each site's own (FedBN, Li et al. 2021, "
            "arXiv:2102.07623), 'group' builds the network with GroupNorm in its place"
        ),
    ] = "average"
    strategy: Annotated[Strategy, Choice("Flower's strategy")] = "fedavg"
    strategy_options: Annotated[
        _Options,
        Choice(
            "argument of the strategy, for example proximal_mu=0.1; may be repeated",
            "KEY=VALUE",
            flag="--strategy-option",
            unset="Flower's",
            repeated=True,
        ),
    ] = dataclasses.field(default_factory=dict)
    weighting: Annotated[
        Literal["cases", "uniform"],
        Choice("weight of a site in the mean: its number of training cases, or the same for all"),
    ] = "cases"
    sites_per_round: Annotated[
        Count | None, Choice("sites that train in a round", "N", unset="all")
    ] = None
    min_replies: Annotated[
        Count | None,
        Choice(
            "fewest usable replies of a round",
            "N",
            unset="all sites; with --server more than half of them",
        ),
    ] = None
    max_update_norm: Annotated[
        _UpdateNorm,
        Choice(
            "longest update that is aggregated, as L2 norm of trained minus sent weights; 'none' "
            "for no limit, 'auto' for ten times the usual, from three sites on",
            "X|auto|none",
        ),
    ] = "auto"
    oversized_update: Annotated[
        Literal["refuse", "clip"],
        Choice(
            "what happens to a longer update: 'refuse' it, and the site has failed in this round, "
            "or 'clip' it to the limit"
        ),
    ] = "refuse"
    transport_dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        Choice(
            "type of weights on the way; 16 bits halve the traffic and carry a site's change of "
            "the weights, not the weights"
        ),
    ] = "float32"
    global_validation: Annotated[
        bool,
        Choice(
            "validate the global model at the sites before each round's training",
        ),
    ] = True
    resident_trainers: Annotated[
        Count | None, Choice("trainers kept in memory at once", "N", unset="4")
    ] = None
    round_deadline: Annotated[
        Seconds | None,
        Choice(
            "longest a round may take",
            "SECONDS",
            unset="none: every connected site is waited for",
        ),
    ] = None
    seed: Seed = DEFAULT_SEED

    def __post_init__(self) -> None:
        PrivacyChoices.__post_init__(self)
        PersonalChoices.__post_init__(self)
        if self.sites_per_round and self.min_replies:
            allowed = f"at most --sites-per-round ({self.sites_per_round})"
            fits = self.min_replies <= self.sites_per_round
            require(fits, "--min-replies", self.min_replies, allowed)

    @property
    def validates_received(self) -> bool:
        """Whether sites validate the weights that they receive, and tell the result."""
        return self.global_validation and not self.withholds

    def needed(self, count: int, *, remote: bool) -> int:
        """Return how many of ``count`` sites a round cannot do without.

        Where ``min_replies`` is not set, these are more than half of sites on other machines, so
        that no single one of three or more can end a federation; and all on this machine, where a
        site that fails is a mistake to be seen.
        """
        if self.min_replies is not None:
            return min(self.min_replies, count)
        return count // 2 + 1 if remote else count


def setting_names() -> tuple[str, ...]:
    """Names of all :class:`FederationSettings`, as the settings file spells them."""
    return names_of(FederationSettings)
