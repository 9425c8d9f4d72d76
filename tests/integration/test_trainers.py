"""Trainers as nnU-Net ships them and as users write them: federated for a round, or one line."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import pkgutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2.training.nnUNetTrainer
import numpy as np
import pytest
import torch
from helpers import a_run
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.launch import check, prepare
from nnunetv2_federated.nnunet.data.dataset import find_trainer, load_dataset
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.site import Site
from nnunetv2_federated.nnunet.training.trainer import federated_trainer
from nnunetv2_federated.nnunet.training.weights import num_values

TINY = "nnUNetTinyPlans"


def shipped() -> dict[str, type]:
    """Every class below ``nnunetv2.training.nnUNetTrainer``, where nnU-Net looks for trainers."""
    package = nnunetv2.training.nnUNetTrainer
    modules = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return {
        name: value
        for module in modules
        for name, value in vars(importlib.import_module(module.name)).items()
        if isinstance(value, type) and issubclass(value, nnUNetTrainer)
    }


SHIPPED = shipped()
PRIMUS = [
    n for n, c in SHIPPED.items() if issubclass(c, AbstractPrimus) and c is not AbstractPrimus
]
REFUSED = {
    "AbstractPrimus": "has no network of its own",
    "nnUNetTrainerBenchmark_5epochs": "This only works on GPU",
    "nnUNetTrainerBenchmark_5epochs_noDataLoading": "This only works on GPU",
}
if importlib.util.find_spec("adan_pytorch") is None:
    needs = "requires adan_pytorch to be installed"
    REFUSED |= {name: needs for name in SHIPPED if name.startswith("nnUNetTrainerAdan")}


@pytest.fixture(scope="module")
def tiny(dataset_2d: str) -> str:
    """Plans of the 2D dataset with a network of a few hundred weights."""
    dataset = load_dataset(dataset_2d)
    plans = json.loads(json.dumps(dataset.plans)) | {"plans_name": TINY}
    configuration = plans["configurations"]["2d"]
    configuration["batch_size"] = 2
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [4, 4, 4],
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1] * 3,
        "n_conv_per_stage_decoder": [1] * 2,
    }
    (dataset.folder / f"{TINY}.json").write_text(json.dumps(plans))
    return dataset_2d


def run_of(dataset: str, trainer: str, **options: Any) -> Run:
    short = {"sites": 2, "rounds": 3, "iterations_per_epoch": 1, "val_iterations": 1}
    options = {"trainer": trainer, "plans": TINY, **short, **options}
    return a_run(dataset, **options)


def train_round(run: Run, server_round: int = 0) -> tuple[GlobalModel, Site, np.ndarray]:
    """Train a round at the first site; return its weights, too."""
    folder = prepare(run)
    model = GlobalModel(run)
    site = Site(run, 0, folder, Observer())
    task = TrainTask(server_round, model.schedule.lrs[server_round], 1, 0)
    trained, _ = site.train(task, model.vector)
    return model, site, trained


def rates(site: Site) -> list[float]:
    return [group["lr"] for group in site.trainer.optimizer.param_groups]


def own_rates(name: str) -> list[float]:
    """Learning rates of rounds 0 and 1 of 3, by hand."""
    initial = 0.01
    for text, value in (("1en3", 1e-3), ("3en4", 3e-4), ("1en1", 0.1), ("2e4", 2e-4)):
        initial = value if text in name else initial
    if name in PRIMUS:
        initial = 3e-4 if initial == 0.01 else initial
    if name in PRIMUS or name == "nnUNetTrainer_warmup":
        return [initial * 1 / 50, initial * 2 / 50]
    if name.endswith("CosAnneal"):
        return [initial, initial * 0.75]  # (1 + cos(pi / 3)) / 2
    return [initial, initial * (2 / 3) ** 0.9]


def test_all_are_found_where_nnunet_finds_them() -> None:
    assert len(SHIPPED) >= 72
    assert [name for name, kind in SHIPPED.items() if find_trainer(name) is not kind] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_trainer_is_federated_or_refused(
    name: str, tiny: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in REFUSED:
        with pytest.raises(SettingsError, match=REFUSED[name]) as refused:
            check(run_of(tiny, name))
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not results.exists()
        return
    trainer = name
    if name in PRIMUS:  # all but the network, which is for 3D and large
        trainer = f"Tiny{name}"
        text = f"""
            from {SHIPPED[name].__module__} import {name}
            from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

            class {trainer}({name}):
                build_network_architecture = staticmethod(nnUNetTrainer.build_network_architecture)

                def __init__(self, *args, **kwargs):
                    super().__init__(*args, **kwargs)
                    self.configuration_manager.configuration["patch_size"] = [32, 32]
        """
        (tmp_path / "tiny_network.py").write_text(textwrap.dedent(text))
        monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    iterations = 2 if "Adan" in name else 1  # its first only takes a gradient down
    run = run_of(tiny, trainer, iterations_per_epoch=iterations)
    model, site, trained = train_round(run, 1)
    assert model.schedule.lrs[:2] == pytest.approx(own_rates(name), rel=1e-9)
    assert rates(site) == pytest.approx([own_rates(name)[1]], rel=1e-9)
    assert trained.shape == model.vector.shape
    assert np.isfinite(trained).all()
    assert not np.array_equal(trained, model.vector)

    (group,) = site.trainer.optimizer.param_groups
    kind = type(site.trainer.optimizer).__name__
    if name in PRIMUS:
        assert (kind, group["weight_decay"], group["betas"]) == ("AdamW", 0.05, (0.9, 0.98))
    elif "Adam" in name:
        assert (kind, group["weight_decay"]) == ("Adam" if "Vanilla" in name else "AdamW", 3e-5)
        assert group["amsgrad"] == ("Vanilla" not in name)
    elif "Adan" not in name:
        assert (kind, group["weight_decay"], group["momentum"]) == ("SGD", 3e-5, 0.99)

    model.save_final(trained)
    model.load_checkpoint()  # some read it in a way of their own
    assert np.array_equal(model.vector, trained)
    content = torch.load(model.folder / "checkpoint_final.pth", weights_only=True)
    assert content["trainer_name"] == (name if trainer == name else "nnUNetTrainer_warmup")
    site.close()


@pytest.mark.parametrize("name", PRIMUS)
def test_a_network_of_primus_is_one_vector(name: str) -> None:
    """On torch's meta device, which allocates nothing: they have up to 386 million weights."""
    wanted = SimpleNamespace(patch_size=(32, 32, 32))
    with torch.device("meta"):
        network: Any = SHIPPED[name].build_network_architecture(None, wanted, 1, 3, False)
    weights = sum(p.numel() for p in network.parameters())
    tables = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    assert num_values(network) == weights + tables
    assert 23e6 < weights < 400e6
    if name == "nnUNet_Primus_L_Trainer":
        assert round(weights / 1e6) == 324


def test_primus_on_a_configuration_it_cannot_see(tiny: str, results: Path) -> None:
    with pytest.raises(SettingsError, match=r"Primus_S_Trainer cannot be built for 2d.*3d is supp"):
        check(run_of(tiny, "nnUNet_Primus_S_Trainer"))
    assert not results.exists()


# Trainers as users write them

HEAD = """
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TwoRates(nnUNetTrainer):
    scheduler = PolyLRScheduler

    def rates(self):
        return self.initial_lr / 4, self.initial_lr

    def groups(self):
        first, *others = self.network.parameters()
        slow, fast = self.rates()
        return [{"params": [first], "lr": slow}, {"params": others, "lr": fast}]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.groups(), self.initial_lr, momentum=0.5, weight_decay=1e-3)
        return optimizer, self.scheduler(optimizer, self.initial_lr, self.num_epochs)
"""


Mine = Callable[[str], None]


@pytest.fixture
def mine(tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> Mine:
    """Write a trainer ``Mine`` where nnU-Net looks for users' own."""
    del results
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))

    def write(body: str) -> None:
        (tmp_path / "mine" / "my_trainers.py").write_text(HEAD + textwrap.dedent(body))

    return write


KEPT: dict[str, tuple[str, dict[str, Any], list[float], list[float]]] = {
    # body, options, rates of the groups in round 0, and in round 2 of 4
    "declared": (
        "class Mine(TwoRates): pass",
        {},
        [0.0025, 0.01],
        [0.0025 * 0.5**0.9, 0.01 * 0.5**0.9],
    ),
    "of the flag": (
        "class Mine(TwoRates): pass",
        {"initial_lr": 0.1},
        [0.025, 0.1],
        [0.025 * 0.5**0.9, 0.1 * 0.5**0.9],
    ),
    "of the scheduler": (
        """
        class Halving(PolyLRScheduler):
            def step(self, current_step=None):
                super().step(current_step)
                self.optimizer.param_groups[1]["lr"] *= 0.5

        class Mine(TwoRates):
            scheduler = Halving

            def rates(self):
                return self.initial_lr, self.initial_lr
        """,
        {},
        [0.01, 0.005],
        [0.01 * 0.5**0.9, 0.005 * 0.5**0.9],
    ),
    "torch's scheduler": (
        """
        class Mine(TwoRates):
            def scheduler(self, optimizer, *_):
                return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
        """,
        {},
        [0.0025, 0.01],
        [0.00025, 0.001],
    ),
    "torch's scheduler, replaced": (
        """
        class Mine(TwoRates):
            def scheduler(self, optimizer, *_):
                return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
        """,
        {"lr_schedule": "poly"},
        [0.0025, 0.01],
        [0.0025 * 0.5**0.9, 0.01 * 0.5**0.9],
    ),
    "set by a hook": (
        """
        class Mine(TwoRates):
            def on_train_epoch_start(self):
                super().on_train_epoch_start()
                for group, rate in zip(self.optimizer.param_groups, (0.001, 0.003)):
                    group["lr"] = rate * (self.current_epoch + 1) / self.num_epochs
        """,
        {},
        [0.00025, 0.00075],
        [0.00075, 0.00225],
    ),
    "stepped by validation, replaced": (
        """
        class Mine(TwoRates):
            def scheduler(self, optimizer, *_):
                return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        """,
        {"lr_schedule": "poly"},
        [0.0025, 0.01],
        [0.0025 * 0.5**0.9, 0.01 * 0.5**0.9],
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_parameter_groups_keep_their_ratios(
    what: str, tiny: str, mine: Mine, results: Path
) -> None:
    body, options, first, third = KEPT[what]
    mine(body)
    model, site, _ = train_round(run_of(tiny, "Mine", rounds=4, **options))
    assert rates(site) == pytest.approx(first, rel=1e-9)
    site.train(TrainTask(2, model.schedule.lrs[2], 1, 0), model.vector)  # it missed a round
    assert rates(site) == pytest.approx(third, rel=1e-9)
    for group in site.trainer.optimizer.param_groups:
        assert (group["momentum"], group["weight_decay"]) == (0.5, 1e-3)
    assert any("parameter groups of Mine learn with" in line for line in model.notes)
    site.close()
    del results


NOT_KEPT = {
    "plateau": (
        """
        class Mine(TwoRates):
            def scheduler(self, optimizer, *_):
                return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        """,
        r"lowers its learning rate by what it validates \(ReduceLROnPlateau\).*--lr-schedule poly",
    ),
    "stepped by iteration": (
        """
        class Mine(TwoRates):
            def scheduler(self, optimizer, *_):
                return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 100)

            def on_train_epoch_start(self):
                self.network.train()

            def train_step(self, batch):
                self.lr_scheduler.step()
                return super().train_step(batch)
        """,
        r"steps its scheduler \(OneCycleLR\) elsewhere than at the start of an epoch",
    ),
    "needs a batch": (
        """
        class Mine(TwoRates):
            def on_train_epoch_start(self):
                super().on_train_epoch_start()
                self.seen = next(self.dataloader_train)
        """,
        "does not follow from the epoch alone",
    ),
    "another optimizer": (
        """
        class Mine(nnUNetTrainer):
            stage = None

            def configure_optimizers(self, stage="decoder"):
                self.stage = stage
                part = self.network.decoder if stage == "decoder" else self.network
                optimizer = torch.optim.SGD(part.parameters(), self.initial_lr)
                return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

            def on_train_epoch_start(self):
                if self.current_epoch == 1:
                    self.optimizer, self.lr_scheduler = self.configure_optimizers("all")
                super().on_train_epoch_start()
        """,
        "changes the optimizer in epoch 1",
    ),
    "frozen at first": (
        """
        class Mine(nnUNetTrainer):
            def on_train_epoch_start(self):
                super().on_train_epoch_start()
                for weights in self.network.encoder.parameters():
                    weights.requires_grad_(self.current_epoch > 0)
        """,
        "changes the frozen weights in epoch 0",
    ),
    "weight decay": (
        """
        class Mine(TwoRates):
            def on_train_epoch_start(self):
                super().on_train_epoch_start()
                self.optimizer.param_groups[0]["weight_decay"] = 1e-3 * (1 + self.current_epoch)
        """,
        "changes the weight_decay of its optimizer in epoch 1",
    ),
    "ratios that change": (
        """
        class Mine(TwoRates):
            def on_train_epoch_start(self):
                super().on_train_epoch_start()
                self.optimizer.param_groups[0]["lr"] = 0.001
        """,
        "parameter groups whose ratios change in epoch",
    ),
    "more arguments": (
        """
        class Mine(nnUNetTrainer):
            def __init__(self, plans, configuration, fold, dataset_json, device, width):
                super().__init__(plans, configuration, fold, dataset_json, device)
        """,
        "its __init__ cannot be called as nnU-Net calls it .*'width'",
    ),
    "fewer arguments": (
        """
        class Mine(nnUNetTrainer):
            def __init__(self, plans, configuration, fold, dataset_json):
                super().__init__(plans, configuration, fold, dataset_json)
        """,
        "its __init__ cannot be called as nnU-Net calls it .*'device'",
    ),
    "arguments of an older nnU-Net": (
        """
        class Mine(nnUNetTrainer):
            def __init__(self, plans, configuration, fold, dataset_json, unpack=True, device=None):
                super().__init__(plans, configuration, fold, dataset_json, unpack, device)
        """,
        "Mine cannot be built for 2d of Dataset901_Balls on cpu: TypeError: .*positional",
    ),
    "no model": (
        """
        class Mine(nnUNetTrainer):
            def __init__(self, plans, configuration, fold, dataset_json, device):
                super().__init__(plans, configuration, fold, dataset_json, device)
                self.disable_checkpointing = True
        """,
        "trainer Mine saves no model",
    ),
    "a package that is absent": (
        """
        import no_such_package

        class Mine(nnUNetTrainer): pass
        """,
        r"my_trainers\.py cannot be imported \(ModuleNotFoundError: No module named 'no_such_pack",
    ),
    "an error in the file": ("class Mine(nnUNetTrainer:", r"my_trainers\.py.*SyntaxError"),
    "an error when it is imported": ("raise TypeError('of mine')", r"my_trainers\.py.*of mine"),
}


@pytest.mark.parametrize("what", NOT_KEPT)
def test_what_cannot_be_kept_is_one_line_before_anything_is_written(
    what: str, tiny: str, mine: Mine, results: Path
) -> None:
    body, message = NOT_KEPT[what]
    mine(body)
    with pytest.raises(SettingsError, match=message) as refused:
        check(run_of(tiny, "Mine"))
    assert "\n" not in str(refused.value)
    assert "Mine" in str(refused.value)
    assert not results.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_lr": 0.1}, r"--initial-lr 0\.1: SGD of trainer Mine has its own \(0\.002\)"),
        ({"weight_decay": 0.1}, r"--weight-decay 0\.1: SGD of trainer Mine has its own \(0\.003"),
    ],
)
def test_a_flag_that_a_trainer_would_pass_over_is_refused(
    options: dict[str, float],
    message: str,
    tiny: str,
    mine: Mine,
    results: Path,
) -> None:
    body = """
        class Mine(nnUNetTrainer):
            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.network.parameters(), 0.002, weight_decay=0.003)
                return optimizer, PolyLRScheduler(optimizer, 0.002, self.num_epochs)
    """
    mine(body)
    with pytest.raises(SettingsError, match=message):
        check(run_of(tiny, "Mine", **options))
    check(run_of(tiny, "Mine"))
    assert not results.exists()


def test_what_a_trainer_sets_for_itself_stays(tiny: str, mine: Mine, results: Path) -> None:
    """Its own momentum under that name, hooks with more arguments, an __init__ with a default."""
    body = """
        class Mine(nnUNetTrainer):
            def __init__(self, plans, configuration, fold, dataset_json, extra=7, device=None):
                super().__init__(plans, configuration, fold, dataset_json, device)
                self.momentum, self.extra, self.epochs_seen = 0.95, extra, []

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(
                    self.network.parameters(), self.initial_lr, momentum=self.momentum
                )
                return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

            def on_train_epoch_start(self, stage="all"):
                super().on_train_epoch_start()
                self.epochs_seen.append(self.current_epoch)

            def train_step(self, batch, scale=1.0):
                return super().train_step(batch)
    """
    mine(body)
    _, site, _ = train_round(run_of(tiny, "Mine"))
    assert site.trainer.device.type == "cpu"
    assert (site.trainer.momentum, site.trainer.extra) == (0.95, 7)
    assert site.trainer.optimizer.param_groups[0]["momentum"] == 0.95
    assert site.trainer.epochs_seen == [0]  # reading the schedule left nothing behind
    assert site.trainer.train_step(next(site.trainer.dataloader_train), scale=2.0)["loss"]
    site.close()
    del results


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            """
            class Mine(nnUNetTrainer):
                def train_step(self, batch):
                    self.optimizer.param_groups[0]["lr"] *= 0.9
                    return super().train_step(batch)
            """,
            "Mine.* changes its learning rate within an epoch",
        ),
        (
            """
            class Mine(nnUNetTrainer):
                def run_training(self):
                    self.on_train_start()
                    self.on_train_end()
            """,
            "Mine.* ended 1 of 1 epochs too early",
        ),
        (
            """
            class Mine(nnUNetTrainer):
                def validation_step(self, batch):
                    return {"loss": super().validation_step(batch)["loss"]}
            """,
            "validation_step of trainer Mine.* returns no tp_hard",
        ),
    ],
)
def test_what_only_a_batch_shows_ends_the_round(
    body: str,
    message: str,
    tiny: str,
    mine: Mine,
    results: Path,
) -> None:
    mine(body)
    with pytest.raises(SiteError, match=message):
        train_round(run_of(tiny, "Mine"))
    del results


def test_a_schedule_is_read_without_a_trace(tiny: str, results: Path) -> None:
    """The trainer draws the same random numbers and logs what it logged before."""
    run = run_of(tiny, "nnUNetTrainerCosAnneal", rounds=4)
    trainer = GlobalModel(run).trainer
    before = dict(vars(trainer))
    log = Path(trainer.log_file).read_text()
    torch.manual_seed(1)
    trainer.network.eval()
    trainer.take_schedule()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    changed = [key for key, value in vars(trainer).items() if value is not before.get(key)]
    assert changed == ["schedule"]
    assert not trainer.network.training
    assert Path(trainer.log_file).read_text() == log
    assert trainer.logger.get_value("lrs", step=None) == []
    # 0.01 times half of one plus the cosine of a quarter of pi per round
    expected = [0.01, 0.01 * (1 + math.sqrt(0.5)) / 2, 0.005, 0.01 * (1 - math.sqrt(0.5)) / 2]
    assert trainer.schedule.lrs == pytest.approx(expected, rel=1e-9)
    del results


def test_a_stage_of_warm_up_ends_in_its_round(tiny: str, results: Path) -> None:
    """50 rounds up, then poly over the other 10; the site's hooks go through both stages."""
    model, site, _ = train_round(run_of(tiny, "nnUNetTrainer_warmup", rounds=60), 49)
    lrs = model.schedule.lrs
    assert lrs[0] == pytest.approx(0.0002)
    assert lrs[49] == pytest.approx(0.01)
    assert lrs[50] == pytest.approx(0.01)
    assert lrs[55] == pytest.approx(0.01 * 0.5**0.9)
    assert rates(site) == [lrs[49]]
    trainer, first = site.trainer, site.trainer.optimizer
    trainer.current_epoch, trainer.num_epochs = 50, 51  # as run_round has them
    trainer.logger.local_logger.my_fantastic_logging["lrs"] = [0.0] * 50
    trainer._rate.lr = lrs[50]
    trainer.on_train_epoch_start()
    assert rates(site) == [lrs[50]]
    assert site.trainer.optimizer is first
    assert site.trainer.training_stage == "train"
    assert "at most 0.01 in round 50" in model.notes[0]
    site.close()
    del results


def test_trainers_are_looked_for_by_name() -> None:
    assert federated_trainer("nnUNetTrainer_warmupFederated").__name__.endswith("warmupFederated")
    with pytest.raises(SettingsError, match="trainer NoSuchTrainer is unknown"):
        federated_trainer("NoSuchTrainer")
