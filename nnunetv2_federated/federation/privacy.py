"""Differential privacy: what a user chooses of it, and what a site tells of its own.

The promise is made by each site for its own patients (DP-SGD, Abadi et al. 2016,
arXiv:1607.00133); docs/differential-privacy.md says what it means and what it does not cover.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nnunetv2_federated.federation.choice import (
    Allowed,
    Choice,
    Choices,
    Count,
    default_of,
    names_of,
    record,
    spell_flag,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.messages import PrivacyTerms

LARGEST_CLIP = 12.0
"""nnU-Net's own trainers clip every gradient to this norm before anyone else sees it."""
LARGEST_EPSILON = 500.0
"""Of a budget; more protects nobody, and beyond 700 the accountant's bound is loose."""

_Above0 = Annotated[
    float, Field(gt=0, le=1e6, allow_inf_nan=False), Allowed("a number above 0, at most 1e6")
]


@record
class PrivacyChoices(Choices):
    """How a federation protects patients by noise; without epsilon and noise it does not."""

    group: ClassVar[str] = "differential privacy"

    dp_epsilon: Annotated[
        Annotated[
            float,
            Field(gt=0, le=LARGEST_EPSILON),
            Allowed(f"above 0 and at most {LARGEST_EPSILON:g}, which already protects nobody"),
        ]
        | None,
        Choice(
            "train with differential privacy: each site makes its noise so large that this "
            "training, or all of -c and -f together, costs each of its patients at most this "
            "epsilon",
            "X",
            unset="none",
        ),
    ] = None
    dp_noise: Annotated[
        _Above0 | None,
        Choice(
            "train with differential privacy: standard deviation of the noise as a multiple of "
            "--dp-clip, in place of --dp-epsilon",
            "X",
            unset="made for --dp-epsilon",
        ),
    ] = None
    dp_delta: Annotated[
        Annotated[float, Field(gt=0, lt=1), Allowed("above 0 and below 1")] | None,
        Choice(
            "delta, below 1 / (patients of the smallest site)",
            "X",
            unset="of each site (its patients) ** -1.1",
        ),
    ] = None
    dp_clip: Annotated[
        Annotated[
            float,
            Field(gt=0, le=LARGEST_CLIP),
            Allowed("above 0 and at most 12, to which nnU-Net clips every gradient first"),
        ],
        Choice("largest norm of one patient's gradient; longer ones are shortened", "X"),
    ] = 1.0
    dp_batch: Annotated[
        Count,
        Choice(
            "patients of a training iteration on average: each takes part by chance, with "
            "probability dp_batch / (patients of the site)",
            "N",
        ),
    ] = 32
    dp_patches: Annotated[
        Count,
        Choice(
            "patches (or augmented images) of each patient in an iteration, averaged before the "
            "gradient is clipped",
            "N",
        ),
    ] = 2
    dp_trainable: Annotated[
        Annotated[
            str,
            Field(min_length=1, max_length=200),
            Allowed("all, norm, head or a pattern of at most 200 characters"),
        ],
        Choice(
            "parameters that are trained: 'all', 'norm' (of normalisation layers), 'head' (the "
            "last layers), or a pattern of their names such as 'encoder.stages.0.*'; several are "
            "joined by commas. The others stay as -pretrained_weights has them. Few need less "
            "noise. Works without differential privacy, too",
            "all|norm|head|PATTERN",
        ),
    ] = "all"
    dp_validation: Annotated[
        Literal["withhold", "clear"],
        Choice(
            "what sites tell of their validation cases under differential privacy, which does not "
            "protect these: nothing, or losses and voxel counts as without it"
        ),
    ] = "withhold"

    def __post_init__(self) -> None:
        if self.dp_epsilon is not None and self.dp_noise is not None:
            raise SettingsError(
                f"--dp-epsilon {self.dp_epsilon:g} --dp-noise {self.dp_noise:g}: each says how "
                "much noise there is; give one of them."
            )
        if self.private:
            return
        for name in names_of(PrivacyChoices):
            given = getattr(self, name) != default_of(PrivacyChoices, name)
            if name not in _WITHOUT and given:
                raise SettingsError(
                    f"{spell_flag(PrivacyChoices, name)} {getattr(self, name)}: is for trainings "
                    "with differential privacy; give --dp-epsilon or --dp-noise, or leave it out."
                )

    @property
    def private(self) -> bool:
        """Whether the training is differentially private."""
        return self.dp_epsilon is not None or self.dp_noise is not None

    @property
    def withholds(self) -> bool:
        """Whether sites tell nothing of their validation cases."""
        return self.private and self.dp_validation == "withhold"


_WITHOUT = ("dp_epsilon", "dp_noise", "dp_trainable")
"""Choices that mean something without differential privacy."""


def describe_terms(site: str, terms: PrivacyTerms) -> str:
    """Say in one line what a training costs each patient of a site, and what all have cost.

    Parameters
    ----------
    site
        Name of the site.
    terms
        What the site promises.
    """
    units = f"{terms.patients} {terms.unit}s" if terms.patients > 1 else f"1 {terms.unit}"
    budget = "" if terms.max_epsilon is None else f" of {terms.max_epsilon:.3g} allowed"
    validation = (
        "; its validation cases are not protected, and losses and counts of them are told"
        if terms.told_of_validation == "clear"
        else ""
    )
    return (
        f"privacy of {site}: epsilon {terms.epsilon:.3g} (replace-one "
        f"{terms.epsilon_replace_one:.3g}) at delta {terms.delta:.2g} for each of its {units}; all "
        f"trainings with them {terms.epsilon_spent:.3g}{budget}; noise "
        f"{terms.noise_multiplier:.3g} times clip {terms.clip:g}, drawn with probability "
        f"{terms.probability:.3g} in each of {terms.iterations} iterations{validation}"
    )
