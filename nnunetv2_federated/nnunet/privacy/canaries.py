"""Canaries: patients that are only a gradient, by whose coordinate one sees who took part.

The gradient of a canary is zero but for one coordinate, which no other canary has, and there it is
longer than the clipping norm: clipped, it is all that a single patient may contribute. So the
coordinates of what was released show the canaries as well as anything could.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnunetv2_federated.nnunet.privacy.clipped_sum import ClippedSum

if TYPE_CHECKING:
    from nnunetv2_federated.nnunet.privacy.accounting import Mechanism

_LENGTH = 10.0
"""Length of a canary's gradient before clipping, in clipping norms: only clipping makes it fit."""

Included = NDArray[np.bool_]
"""Whether each canary takes part, shape (canaries,)."""
Scores = NDArray[np.float64]
"""How much each canary seems to have taken part, in clipping norms, shape (canaries,)."""
MakeSum = Callable[[Iterable[nn.Parameter], float], ClippedSum]


def toss(count: int, rng: np.random.Generator) -> Included:
    """Decide by fair coins which canaries take part."""
    return rng.random(count) < 0.5


class Canaries:
    """The canaries of one training, and what its releases say of them.

    Parameters
    ----------
    parameters
        Parameters of the network; a canary is one coordinate of those that are trained.
    included
        Canaries that take part.
    clip
        Clipping norm of the training.
    expected
        Number by which the training divides its releases.
    rng
        Chooses the coordinates.

    Raises
    ------
    ValueError
        If there are more canaries than coordinates.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        included: Included,
        *,
        clip: float,
        expected: float,
        rng: np.random.Generator,
    ) -> None:
        trained = [p for p in parameters if p.requires_grad]
        sizes = [p.numel() for p in trained]
        if sum(sizes) < len(included):
            raise ValueError(f"{len(included)} canaries do not fit {sum(sizes)} parameters")
        chosen = rng.choice(sum(sizes), size=len(included), replace=False)
        starts = np.cumsum([0, *sizes])
        owners = np.searchsorted(starts, chosen, side="right") - 1
        self._places: list[tuple[nn.Parameter, int]] = [
            (trained[owner], int(place - starts[owner]))
            for owner, place in zip(owners, chosen, strict=True)
        ]
        self.included = included
        self.scores: Scores = np.zeros(len(included))
        self._length = _LENGTH * clip
        self._unit = clip / expected

    def set_gradient(self, canary: int) -> None:
        """Make the present gradient of the network that of a canary."""
        parameter, place = self._places[canary]
        gradient = torch.zeros_like(parameter)
        gradient.view(-1)[place] = self._length
        parameter.grad = gradient

    def observe(self, *_: Any) -> None:  # noqa: ANN401  # arguments of a hook
        """Add the present gradient, which was released, to the scores.

        Usable as a hook before the step of an optimizer.
        """
        self.scores += [_value(parameter, place) / self._unit for parameter, place in self._places]


def _value(parameter: nn.Parameter, place: int) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.view(-1)[place])


def release_scores(
    included: Included,
    mechanism: Mechanism,
    clip: float,
    *,
    rng: np.random.Generator,
    generator: torch.Generator,
    make: MakeSum = ClippedSum,
) -> Scores:
    """Release sums of canaries alone, as the steps of a training do, and score the canaries.

    Parameters
    ----------
    included
        Canaries that take part.
    mechanism
        Number of steps, the noise of each, and the probability with which it draws a canary.
    clip
        Clipping norm.
    rng
        Draws canaries.
    generator
        Draws the noise.
    make
        Makes the sum of a step; other than :class:`.ClippedSum` to audit another.
    """
    vector = nn.Parameter(torch.zeros(len(included)))
    canaries = Canaries([vector], included, clip=clip, expected=1, rng=rng)
    for _ in range(mechanism.steps):
        total = make([vector], clip)
        drawn = rng.random(len(included)) < mechanism.probability
        for canary in np.flatnonzero(included & drawn):
            total.zero_grad()
            canaries.set_gradient(int(canary))
            total.step()
        total.release(mechanism.noise_multiplier, 1, generator)
        canaries.observe()
    return canaries.scores
