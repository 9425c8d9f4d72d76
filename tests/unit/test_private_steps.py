"""Private steps through nnU-Net's own ``train_step``, against autograd of one patient at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from private_doubles import (
    CPU,
    Bare,
    Batch,
    PrivateBare,
    classification,
    clipped_by_hand,
    images,
    patches,
    privacy,
    released,
    segmentation,
)
from torch import nn

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.nnunet.privacy.constant_scaler import ConstantScaler
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining

CLIP = 0.05
KINDS: dict[str, tuple[Callable[[], PrivateBare], Callable[[int], Batch]]] = {
    **{
        f"{kind} {dimensions}d, {labels}": (
            lambda k=kind, d=dimensions, n=labels: segmentation(k, d, n, lr=0.0),
            lambda seed, d=dimensions, n=labels: patches(d, n, 2, seed),
        )
        for kind, dimensions, labels in (
            ("plain", 2, "labels"),
            ("plain", 3, "labels"),
            ("residual", 2, "labels"),
            ("residual", 3, "labels"),
            ("plain", 2, "ignore"),
            ("plain", 3, "regions"),
            ("plain", 2, "regions and ignore"),
        )
    },
    **{
        model: (
            lambda m=model: classification(m, lr=0.0),
            lambda seed: images(2, seed),
        )
        for model in ("test_resnet", "resnet18")
    },
}  # type: ignore[dict-item,misc]  # lambdas with defaults
"""A trainer of each kind whose weights stay, and the batch of a patient."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_that_of_autograd_one_patient_at_a_time(kind: str) -> None:
    build, batch_of = KINDS[kind]
    trainer = build()
    batches = [batch_of(seed) for seed in range(3)]
    whole = [clipped_by_hand(trainer, batch, 1e9) for batch in batches]
    # one patient is shorter than the bound, and the others longer
    clip = min(float(gradient.norm()) for gradient in whole) * 1.001
    clip = min(clip, 10.0)  # or than nnU-Net's own bound of 12
    by_hand = sum(clipped_by_hand(trainer, batch, clip * (1 - 1e-5)) for batch in batches)

    total = released(trainer, batches, clip=clip)

    assert float((total - by_hand).abs().max()) < 1e-6 * max(1.0, clip)
    assert float((total - by_hand).norm()) < 2e-6 * clip
    assert float(by_hand.norm()) > clip


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_that_differ_in_a_patient_differ_by_his_clipped_gradient(kind: str) -> None:
    # catches what mixes patients: batch Dice, an ignore label, BatchNorm, gradients left behind
    build, batch_of = KINDS[kind]
    trainer = build()
    batches = [batch_of(seed) for seed in range(3)]
    with_all = released(trainer, batches, clip=CLIP)
    for number, batch in enumerate(batches):
        without = released(trainer, [b for b in batches if b is not batch], clip=CLIP)
        alone = released(trainer, [batch], clip=CLIP)
        assert float((with_all - without - alone).abs().max()) < 1e-7, number
        assert CLIP * 0.999 < float(alone.norm()) <= CLIP
        assert float((with_all - without).norm()) < CLIP * (1 + 1e-6)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_with_everybody_and_without_noise_it_is_nnunets_own_step(dimensions: int) -> None:
    usual = {"lr": 0.05, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-3}
    ours = segmentation("plain", dimensions, "labels", batch_dice=False, **usual)
    stock = segmentation("plain", dimensions, "labels", batch_dice=False, **usual)
    ours.privacy = privacy(clip=12, expected_batch=4, patches=1)
    for step in range(3):  # the optimizer's momentum, too
        batches = [patches(dimensions, "labels", 1, 10 * step + n) for n in range(4)]
        together = {
            "data": torch.cat([b["data"] for b in batches]),
            "target": [torch.cat(level) for level in zip(*(b["target"] for b in batches))],  # noqa: B905
        }
        loss = ours.train_step({"patients": iter(batches)})["loss"]
        assert Bare.train_step(stock, together)["loss"] == pytest.approx(loss, abs=1e-5)
        found = dict(ours.network.named_parameters())
        away = {
            name: float((found[name] - parameter).detach().abs().max())
            for name, parameter in stock.network.named_parameters()
            if parameter.grad is not None
        }
        # the lowest output, which has no gradient, decays here as all other weights do
        assert {n for n in found if n not in away} == {
            f"decoder.seg_layers.0.{part}" for part in ("weight", "bias")
        }
        assert max(away.values()) < 1e-5
    before = segmentation("plain", dimensions, "labels").network.state_dict()
    assert max(float((found[name] - before[name]).detach().abs().max()) for name in away) > 1e-2


def test_without_privacy_it_is_nnunets_own_step_bit_for_bit() -> None:
    ours, stock = (segmentation("plain", 2, "labels", lr=0.1) for _ in range(2))
    batch = patches(2, "labels", 2, 0)
    assert ours.train_step(batch) == Bare.train_step(stock, batch)
    for a, b in zip(ours.network.parameters(), stock.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert ours.private_steps == 0


def test_noise_reaches_the_optimizer_and_is_new_in_every_step() -> None:
    trainer = classification("test_resnet", lr=0.0)
    kept = {"clip": 0.5, "noise_multiplier": 3.0, "expected_batch": 16}
    torch.manual_seed(0)
    first = released(trainer, [], **kept)
    torch.manual_seed(0)
    second = released(trainer, [], **kept)

    for noise in (first, second):
        assert len(noise) > 300_000
        assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 16, rel=0.01)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.01
    assert trainer.private_steps == 2


def test_a_layer_without_gradient_has_noise_like_the_others() -> None:
    # deep supervision gives the lowest output no weight
    trainer = segmentation("plain", 3, "labels", lr=0.0)
    batch = patches(3, "labels", 2, 0)
    released(trainer, [batch], noise_multiplier=0.0)
    lowest = [n for n, p in trainer.network.named_parameters()].index("decoder.seg_layers.0.weight")
    assert trainer.optimizer.seen[lowest].abs().max() == 0
    released(trainer, [batch], noise_multiplier=1.0)
    assert trainer.optimizer.seen[lowest].abs().min() > 0


def test_a_step_without_patients_is_noise_only_and_its_loss_is_a_number() -> None:
    trainer = segmentation("plain", 2, "labels", lr=1.0)
    trainer.privacy = privacy(noise_multiplier=1.0)
    before = copy.deepcopy(trainer.network.state_dict())
    assert trainer.train_step({"patients": iter([])}) == {"loss": 0.0}
    after = trainer.network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert trainer.private_steps == 1
    assert all(p.grad is None for p in trainer.network.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_patient_who_is_not_finite_adds_nothing_to_weights_or_loss(value: float) -> None:
    trainer = segmentation("plain", 2, "labels", lr=0.0)
    good, bad = patches(2, "labels", 2, 0), patches(2, "labels", 2, 1)
    bad["data"][:] = value
    alone = released(trainer, [good])
    assert torch.equal(released(trainer, [bad, good]), alone)

    loss = trainer.train_step({"patients": iter([copy.deepcopy(good)])})["loss"]
    assert trainer.train_step({"patients": iter([bad, good])})["loss"] == loss
    assert trainer.train_step({"patients": iter([bad])})["loss"] == 0


def test_a_term_of_the_weights_is_added_behind_the_noise() -> None:
    trainer = segmentation("plain", 2, "labels", lr=0.0)
    batch = patches(2, "labels", 2, 0)
    plain = released(trainer, [batch])

    def add() -> None:
        for parameter in trainer.network.parameters():
            assert parameter.grad is not None
            parameter.grad.add_(100.0)

    trainer.after_noise = add
    assert torch.allclose(released(trainer, [batch]) - plain, torch.tensor(100.0).double())


def test_weight_decay_momentum_and_groups_are_the_optimizers_own() -> None:
    network = nn.Linear(2, 1)
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    trainer = PrivateBare(network, nn.MSELoss())
    trainer.optimizer = torch.optim.SGD(
        [
            {"params": [network.weight], "lr": 0.5, "weight_decay": 0.1},
            {"params": [network.bias], "lr": 0.25, "momentum": 0.5},
        ],
        lr=1.0,
    )
    trainer.privacy = privacy(clip=10, expected_batch=2)
    # output 2 for target 1: the gradient is 2 for each weight and for the bias; norm 3.46
    batch = {"data": torch.ones(1, 2), "target": torch.ones(1, 1)}
    trainer.train_step({"patients": iter([batch, batch])})
    assert network.weight.tolist() == [[pytest.approx(1 - 0.5 * (2 + 0.1))] * 2]
    assert network.bias.tolist() == [pytest.approx(-0.25 * 2)]

    # output -0.6: gradient -3.2; decay of 0.1 * -0.05; momentum of 0.5 * 2
    trainer.train_step({"patients": iter([batch, batch])})
    assert network.weight.tolist() == [[pytest.approx(-0.05 + 0.5 * (3.2 + 0.1 * 0.05))] * 2]
    assert network.bias.tolist() == [pytest.approx(-0.5 - 0.25 * (-3.2 + 0.5 * 2))]


def test_weights_outside_of_the_network_are_clipped_and_have_noise_too() -> None:
    # a loss may learn: its weights are in the optimizer, and what is there is changed
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor([1.0]))

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (self.factor * (output - target) * 1000).mean()

    loss = Learned()
    trainer = PrivateBare(nn.Linear(2, 1), loss)
    trainer.optimizer.add_param_group({"params": loss.parameters()})
    trainer.privacy = privacy(clip=0.5)
    batch = {"data": torch.ones(1, 2), "target": 5 + torch.ones(1, 1)}
    trainer.train_step({"patients": iter([batch])})
    gradient = torch.cat([g.reshape(-1) for g in trainer.optimizer.seen])
    assert float(gradient.norm()) <= 0.5
    assert gradient[-1] != 0
    released(trainer, [], noise_multiplier=1.0)
    assert trainer.optimizer.seen[-1] != 0


def stepping(trainer: Any, times: int) -> None:
    for _ in range(times):
        trainer.optimizer.step()


def writing(trainer: Any) -> None:
    trainer.optimizer.step()
    with torch.no_grad():
        trainer.network.weight.mul_(0.9)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (lambda t: stepping(t, 0), "steps its optimizer 0 times"),
        (lambda t: stepping(t, 2), "steps its optimizer 2 times"),
        (writing, "or changes weights otherwise"),
    ],
)
def test_a_trainer_that_does_not_step_once_is_refused(
    ends: Callable[[Any], None], said: str
) -> None:
    class Odd(Bare):
        def train_step(self, batch: Batch) -> dict[str, Any]:
            self.optimizer.zero_grad()
            loss = self.loss(self.network(batch["data"]), batch["target"])
            loss.backward()
            ends(self)
            return {"loss": loss.detach().numpy()}

    trainer = type("OddPrivate", (PrivateBare, Odd), {})(nn.Linear(2, 1), nn.MSELoss())
    trainer.privacy = privacy()
    own = trainer.optimizer
    batch = {"data": torch.ones(1, 2), "target": torch.ones(1, 1)}
    with pytest.raises(SiteError, match=said):
        trainer.train_step({"patients": iter([batch])})
    assert trainer.optimizer is own
    assert trainer.private_steps == 0


def test_a_patient_who_overflows_changes_nothing_of_what_others_add() -> None:
    # with a scaler that adapts, the second patient's gradient would be rounded differently
    trainer = segmentation("plain", 2, "labels", lr=0.0)
    good, bad = patches(2, "labels", 2, 0), patches(2, "labels", 2, 1)
    bad["data"][:] = float("inf")
    plain = released(trainer, [good])
    trainer.grad_scaler = scaler = ConstantScaler("cpu")
    scale = scaler.get_scale()

    assert torch.allclose(released(trainer, [good]), plain, atol=1e-8)
    scaled = released(trainer, [good])
    assert torch.equal(released(trainer, [bad, good]), scaled)
    assert torch.equal(released(trainer, [bad, bad, good]), scaled)
    assert scaler.get_scale() == scale == 4096


def test_a_trainer_that_lets_its_scaler_unscale_is_understood() -> None:
    class Scaled(Bare):
        def train_step(self, batch: Batch) -> dict[str, Any]:
            self.optimizer.zero_grad()
            loss = self.loss(self.network(batch["data"]), batch["target"])
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            return {"loss": loss.detach().numpy()}

    trainer = type("ScaledPrivate", (PrivateBare, Scaled), {})(
        nn.Linear(2, 1), nn.MSELoss(), lr=0.0
    )
    batch = {"data": torch.ones(1, 2), "target": torch.ones(1, 1)}
    trainer.grad_scaler = ConstantScaler("cpu")
    scaled = released(trainer, [batch, batch], clip=10)
    by_hand = 2 * clipped_by_hand(trainer, batch, 10)
    assert torch.allclose(scaled, by_hand, atol=1e-5)


def test_dropout_of_a_patient_does_not_follow_from_a_known_seed() -> None:
    network = nn.Sequential(nn.Linear(2, 200), nn.Dropout(0.5), nn.Linear(200, 1))
    trainer = PrivateBare(network, nn.MSELoss(), lr=0.0)
    batch = {"data": torch.ones(1, 2), "target": torch.ones(1, 1)}
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(released(trainer, [batch], clip=10))
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip": 0}, "--dp-clip 0: must be a number, above 0"),
        ({"clip": float("nan")}, "--dp-clip nan"),
        ({"expected_batch": 0}, "--dp-batch 0: must be a number, 1 or more"),
        ({"patches": 0}, "--dp-patches 0"),
        ({"noise_multiplier": -1.0}, "--dp-noise -1.0: must be a number, 0 or more"),
        ({"noise_multiplier": float("inf")}, "--dp-noise inf"),
        ({"probability": 1.5}, "drawn with probability 1.5"),
        ({"probability": 0.0}, "drawn with probability 0.0"),
        ({"patients": {}}, "a patient without case, or none"),
        ({"patients": {"p": ()}}, "a patient without case, or none"),
        ({"patients": {"p": ("a", "b"), "q": ("b",)}}, r"1 case \(b\) twice"),
    ],
)
def test_numbers_that_promise_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        privacy(**given)


def test_patients_are_not_in_what_is_printed_of_a_private_training() -> None:
    assert "p0" not in repr(privacy())
    assert isinstance(privacy(), PrivateTraining)
    assert CPU.type == "cpu"
    assert np.isfinite(privacy().clip)
