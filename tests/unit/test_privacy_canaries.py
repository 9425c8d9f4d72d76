"""Canaries find out whether a release keeps what the accountant says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from nnunetv2_federated.nnunet.privacy.accounting import Mechanism
from nnunetv2_federated.nnunet.privacy.auditing import audit
from nnunetv2_federated.nnunet.privacy.canaries import Canaries, release_scores, toss
from nnunetv2_federated.nnunet.privacy.clipped_sum import ClippedSum

EPSILON, DELTA = 4.38, 1e-5
"""What one release keeps, with the noise multiplier 1 and everybody in it."""


class WithoutClipping(ClippedSum):
    """Adds gradients as they are."""

    def step(self) -> None:
        parameters = self.param_groups[0]["params"]
        given = [(t, p.grad) for t, p in zip(self.sums, parameters, strict=True)]
        for total, gradient in given:
            if gradient is not None:
                total.add_(gradient)
        self.steps += 1


class WithAFifthOfTheNoise(ClippedSum):
    """Forgets most of the noise."""

    def release(self, noise_multiplier: float, expected: float, generator: torch.Generator) -> None:
        super().release(noise_multiplier / 5, expected, generator)


def test_the_promise_of_one_release_is_that_of_the_gaussian_mechanism() -> None:
    # Balle and Wang 2018, arXiv:1805.06530, theorem 8, with sensitivity and deviation 1
    delta = norm.cdf(0.5 - EPSILON) - np.exp(EPSILON) * norm.cdf(-0.5 - EPSILON)
    assert delta == pytest.approx(DELTA, rel=0.02)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("make", "contradicts"),
    [(ClippedSum, False), (WithoutClipping, True), (WithAFifthOfTheNoise, True)],
)
def test_an_audit_contradicts_a_release_that_keeps_less_than_is_promised(
    make: type[ClippedSum], contradicts: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    included = toss(1000, rng)
    generator = torch.Generator().manual_seed(seed)
    scores = release_scores(
        included, Mechanism(1.0, 1.0, 1), 1.0, rng=rng, generator=generator, make=make
    )
    found = audit(scores, included, DELTA, EPSILON)
    assert found.contradicts == contradicts
    assert found.bound > 0.8  # the right one, too, is seen
    assert found.most == pytest.approx(5.163, abs=1e-3)


@pytest.mark.parametrize(
    ("mechanism", "clip"), [(Mechanism(0.2, 0.5, 30), 0.1), (Mechanism(1.0, 2.0, 4), 3.0)]
)
def test_scores_are_how_often_a_canary_was_drawn_in_clipping_norms(
    mechanism: Mechanism, clip: float
) -> None:
    rng = np.random.default_rng(5)
    included = toss(400, rng)
    generator = torch.Generator().manual_seed(5)
    scores = release_scores(included, mechanism, clip, rng=rng, generator=generator)
    noise = mechanism.noise_multiplier * mechanism.steps**0.5
    mean = mechanism.probability * mechanism.steps
    drawn = mean * (1 - mechanism.probability)  # variance of the number of draws
    assert scores[~included].mean() == pytest.approx(0, abs=4 * noise / 190**0.5)
    assert scores[~included].std() == pytest.approx(noise, rel=0.2)
    assert scores[included].mean() == pytest.approx(mean, abs=4 * (noise**2 + drawn) ** 0.5 / 13)


def test_each_canary_is_one_coordinate_of_a_trained_parameter() -> None:
    frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
    trained = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))]
    included = np.ones(10, bool)
    rng = np.random.default_rng(0)
    settings = {"clip": 2.0, "expected": 8.0}
    parameters = [trained[0], frozen, trained[1]]
    canaries = Canaries(parameters, included, **settings, rng=rng)
    seen = torch.zeros(10)
    for canary in range(10):
        for parameter in trained:
            parameter.grad = None
        canaries.set_gradient(canary)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        assert sorted(whole.tolist()) == [0.0] * 9 + [20.0]  # ten clipping norms
        seen += whole
        canaries.observe()
    assert seen.tolist() == [20.0] * 10
    assert canaries.scores.tolist() == [80.0] * 10  # 20 / (2 / 8): as if nothing was divided
    with pytest.raises(ValueError, match="10 canaries do not fit 4 parameters"):
        Canaries([trained[1]], included, **settings, rng=rng)
