"""The sum of clipped gradients and its noise, by numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import random
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_federated.nnunet.privacy.clipped_sum import ClippedSum, norm_of
from nnunetv2_federated.nnunet.privacy.keyed_randomness import forget_seed, keyed_generator

CPU = torch.device("cpu")


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size)) for size in sizes]


def test_a_long_gradient_is_clipped_a_short_one_is_kept_and_both_are_added() -> None:
    first, second = parameters(1, 1)
    total = ClippedSum([first, second], clip=1.0)
    for a, b in ((30.0, 40.0), (0.3, 0.4)):  # norms 50 and 0.5 over both parameters together
        first.grad, second.grad = torch.tensor([a]), torch.tensor([b])
        total.step()

    assert [float(s) for s in total.sums] == pytest.approx([0.6 + 0.3, 0.8 + 0.4], abs=2e-5)
    total.release(0.0, 4, torch.Generator())
    assert [float(p.grad) for p in (first, second) if p.grad is not None] == pytest.approx(
        [0.225, 0.3], abs=1e-5
    )
    assert total.steps == 2
    assert [p.item() for p in (first, second)] == [0.0, 0.0]  # no weight has changed


def test_a_gradient_below_the_bound_is_untouched() -> None:
    (weights,) = parameters(3)
    total = ClippedSum([weights], clip=1.0)
    weights.grad = torch.tensor([0.1, -0.2, 0.3])
    total.step()
    assert torch.equal(total.sums[0], torch.tensor([0.1, -0.2, 0.3]))


def test_no_patient_adds_more_than_the_bound_though_float32_takes_norms_too_small() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(2_500_000, generator=generator)
    exact = math.sqrt(float(np.square(gradient.numpy(), dtype=np.float64).sum()))
    assert norm_of([gradient]) == pytest.approx(exact, rel=1e-6)
    for size, clip in ((2_500_000, 1.5), (1000, 1.5), (7, 1e-3)):
        (weights,) = parameters(size)
        total = ClippedSum([weights], clip)
        weights.grad = 100 * gradient[:size]
        total.step()
        added = np.linalg.norm(total.sums[0].numpy().astype(np.float64))
        assert clip * (1 - 2e-5) < added <= clip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_adds_nothing_and_spoils_nothing(value: float) -> None:
    first, second = parameters(2, 2)
    total = ClippedSum([first, second], clip=1.0)
    first.grad = torch.tensor([0.5, 0.0])
    total.step()
    first.grad, second.grad = torch.tensor([value, value]), torch.ones(2)
    total.step()

    assert torch.equal(total.sums[0], torch.tensor([0.5, 0.0]))
    assert torch.equal(total.sums[1], torch.zeros(2))
    assert (total.steps, total.not_finite) == (2, 1)


def test_what_a_patient_left_is_no_part_of_the_next_ones_gradient() -> None:
    # a train_step may forget zero_grad before its first backward
    (weights,) = parameters(1)
    weights.grad = torch.tensor([5.0])
    total = ClippedSum([weights], clip=10.0)
    for _ in range(2):
        (weights.sum() * 1.0).backward()  # type: ignore[no-untyped-call]
        total.step()
    assert total.sums[0].tolist() == [2.0]


def test_frozen_parameters_get_neither_gradient_nor_noise() -> None:
    trained, frozen = parameters(1, 1)
    frozen.requires_grad_(False)
    total = ClippedSum([trained, frozen, trained], clip=1.0)
    total.release(1.0, 1, torch.Generator())
    assert trained.grad is not None
    assert frozen.grad is None
    assert len(total.sums) == 1


def test_an_empty_batch_releases_noise_of_the_promised_size_for_every_parameter() -> None:
    first, without_gradient = parameters(200_000, 200_000)
    total = ClippedSum([first, without_gradient], clip=0.5)
    total.release(3.0, 16, keyed_generator(CPU))

    for parameter in (first, without_gradient):
        assert parameter.grad is not None
        assert float(parameter.grad.std()) == pytest.approx(3.0 * 0.5 / 16, rel=0.01)
        assert abs(float(parameter.grad.mean())) < 5 * 0.09375 / math.sqrt(200_000)
        fourth = (parameter.grad / 0.09375).pow(4).mean()
        assert float(fourth) == pytest.approx(3, rel=0.05)  # of a normal distribution
    both = torch.stack([p.grad for p in (first, without_gradient) if p.grad is not None])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.012


def test_the_noise_is_divided_by_the_expected_number_and_added_to_the_sum() -> None:
    (weights,) = parameters(50)
    total = ClippedSum([weights], clip=2.0)
    weights.grad = torch.full((50,), 0.1)  # norm 0.707
    total.step()
    total.release(1.5, 8, torch.Generator().manual_seed(3))

    noise = torch.randn(50, generator=torch.Generator().manual_seed(3))
    assert weights.grad is not None
    assert torch.allclose(weights.grad, (0.1 + 1.5 * 2.0 * noise) / 8, atol=1e-7)


def released(seed: int) -> list[float]:
    torch.manual_seed(seed)
    np.random.seed(seed)
    (weights,) = parameters(4)
    ClippedSum([weights], 1.0).release(1.0, 1, keyed_generator(CPU))
    assert weights.grad is not None
    values: list[float] = weights.grad.tolist()
    return values


def tell(connection: Connection) -> None:
    connection.send(released(7))


def test_no_two_releases_are_alike_in_one_process_or_in_two_that_were_one() -> None:
    context = multiprocessing.get_context("fork")
    found = [released(7), released(7)]
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=tell, args=(theirs,))
        process.start()
        found.append(ours.recv())
        process.join()
    assert len({value for values in found for value in values}) == 16


def test_all_of_a_cpu_generators_state_comes_from_the_operating_system() -> None:
    # torch fills its 624 words from 32 bits of a seed: word by word, by this rule
    def follows(state: torch.Tensor) -> bool:
        words = [int(w) for w in state[24 : 24 + 624 * 8].numpy().view(np.uint64)]
        return all(
            after == (1812433253 * (before ^ (before >> 30)) + i) % 2**32
            for i, (before, after) in enumerate(itertools.pairwise(words[:6]), 1)
        )

    assert follows(torch.Generator().manual_seed(2**40 + 5).get_state())
    first, second = keyed_generator(CPU).get_state(), keyed_generator(CPU).get_state()
    assert not follows(first)
    assert not torch.equal(first, second)


def test_a_forgotten_seed_is_forgotten_by_all_that_augmentation_draws_from() -> None:
    def draws(*, forget: bool) -> tuple[float, float, float]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if forget:
            forget_seed()
        return random.random(), float(np.random.uniform()), float(torch.rand(()))  # noqa: S311

    kept = draws(forget=False)
    assert kept == draws(forget=False)
    for a, b, c in zip(kept, draws(forget=True), draws(forget=True), strict=True):
        assert len({a, b, c}) == 3
