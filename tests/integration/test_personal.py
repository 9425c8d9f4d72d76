"""Personal models: what a site keeps after the last round, and what it tells of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from helpers import Train, find_different, load_history, load_weights
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_federated.cli.train import main
from nnunetv2_federated.federation.personal import PERSONAL_FILE, read_choice
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.privacy.site_privacy import LEDGER
from nnunetv2_federated.nnunet.training.personal_model import PersonalTraining
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

PERSONAL = "federation/sites/{}/nnUNetTrainerPersonal__nnUNetPlans__2d/fold_0"
FLAGS = ("--rounds", 1, "--sites", 2, "--personal", "finetune", "--personal-iterations", 3)


def predict(fold: Path, image: Path) -> np.ndarray:
    """Predict as stock ``nnUNetv2_predict_from_modelfolder`` does."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,), "checkpoint_final.pth")
    segmentation: np.ndarray = predictor.predict_from_list_of_npy_arrays(
        [read_image(image)], None, [{"spacing": [999, 1, 1]}], None, num_processes=1
    )[0]
    return segmentation


def read_image(path: Path) -> np.ndarray:
    from skimage.io import imread  # noqa: PLC0415

    return np.asarray(imread(path), np.float32)[None, None]


def sites_file(folder: Path) -> Path:
    """Write three sites: with two, one and none of fold 0's validation cases 00, 03 and 08."""
    numbers = {"north": (0, 1, 2, 3), "south": (8, 9, 10, 11), "east": (4, 5, 6, 7)}
    path = folder / "sites.json"
    path.write_text(json.dumps({s: [f"case_{i:02d}" for i in n] for s, n in numbers.items()}))
    return path


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Payloads of both directions."""
    texts: list[str] = []
    deliver = InProcessGrid._deliver

    def record(grid: InProcessGrid, message: Message) -> Message:
        answer = deliver(grid, message)
        for content in (message.content, answer.content):
            texts.extend(str(config["payload"]) for config in content.config_records.values())
        return answer

    monkeypatch.setattr(InProcessGrid, "_deliver", record)
    return texts


@pytest.mark.slow(25)
def test_sites_keep_what_validates_best_and_a_kill_changes_nothing(
    dataset_2d: str,
    train: Train,
    tmp_path: Path,
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped while the second site fine-tunes, continued, and continued once more."""
    rates: list[float] = []
    train_step = FederatedRounds.train_step

    def stop(trainer: FederatedRounds, *batch: object) -> object:
        outputs = train_step(trainer, *batch)
        if trainer.rate_of_step is not None:
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        if len(rates) == 5:  # three of the first site
            raise KeyboardInterrupt
        return outputs

    flags = (
        *(dataset_2d, "2d", 0, "--rounds", 1, "--sites-file", sites_file(tmp_path)),
        *("--personal", "finetune", "--personal-iterations", 3, "--personal-lr", 0.008),
        *("--personal-min-cases", 2),
    )
    with monkeypatch.context() as patched:
        patched.setattr(FederatedRounds, "train_step", stop)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train(*flags)
    # from 0.008, by the share of the steps that is left, to the power of 0.9
    assert rates[:3] == pytest.approx([0.008, 0.005554, 0.002976], rel=1e-3)

    messages.clear()
    fold = train(*flags, "--c")
    assert any('"metric": "Dice"' in text for text in messages)
    assert not any("case_" in text or str(tmp_path) in text for text in messages)

    north, south, east = (fold / PERSONAL.format(name) for name in ("north", "south", "east"))
    choice, of_one_case = read_choice(north), read_choice(south)
    assert choice is not None
    assert of_one_case is not None
    assert sorted(choice.scores) == sorted(of_one_case.scores) == [0.0, 0.25, 0.5, 0.75, 1.0]
    nothing = {**dict.fromkeys(("before", "after", "alpha")), "cases": 0, "metric": ""}
    told = load_history(fold)["personal"]
    assert told == {
        "north": {
            "cases": 2,
            "metric": "Dice",
            "alpha": choice.alpha,
            "before": choice.scores[0.0],
            "after": choice.scores[choice.alpha],
        },
        "south": nothing,  # of one case
        "east": nothing,  # of none
    }
    assert find_different(load_weights(fold), load_weights(east)) == []
    summary = json.loads((north / "validation" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == told["north"]["after"]
    # the global model has in both validations the same Dice of the same cases
    whole = json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]
    dice = {
        Path(case["reference_file"]).stem: [label["Dice"] for label in case["metrics"].values()]
        for case in whole
    }
    before = np.mean([dice["case_00"], dice["case_03"]], axis=0).mean()
    assert told["north"]["before"] == pytest.approx(before, abs=1e-9)

    image = Path(os.environ["nnUNet_raw"]) / "Dataset901_Balls" / "imagesTr" / "case_00_0000.png"  # noqa: SIM112
    assert predict(north, image).shape == (1, 32, 32)
    checkpoint = torch.load(north / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert not (fold / "federation/sites/north/personal").exists()

    kept, file = load_weights(south), (north / PERSONAL_FILE).stat()
    (south / PERSONAL_FILE).unlink()  # as a kill just before the end leaves it
    train(*flags, "--c")
    assert (north / PERSONAL_FILE).stat().st_mtime_ns == file.st_mtime_ns  # not made anew
    assert read_choice(south) == of_one_case
    assert find_different(kept, load_weights(south)) == []
    assert load_history(fold)["personal"] == told


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("0", "--personal-iterations", "0", "--personal", "finetune"), "--personal-iterations 0"),
        (("0", "--personal-lr", "-1", "--personal", "finetune"), "--personal-lr -1"),
        (("0", "--personal", "mixture"), "--personal"),
        (("0", "--personal-lr", "0.1"), "give --personal finetune"),
        (("all", "--personal", "finetune"), "--personal finetune with fold all"),
        (("0", "--personal", "finetune", "--disable_checkpointing"), "--disable_checkpointing"),
    ],
)
def test_bad_choices_are_one_line(
    flags: tuple[str, ...],
    text: str,
    dataset_2d: str,
    results: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([dataset_2d, "2d", *flags, "-device", "cpu"])
    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert text in error.splitlines()[-1]
    assert not results.exists()


@pytest.mark.slow(10)
def test_what_changes_nothing_or_diverges_leaves_the_global_model(
    dataset_2d: str,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With fewer cases than five besides, so nothing is told."""
    fold = train(
        *(dataset_2d, "2d", 0, *FLAGS, "--personal-lr", 1e-12),
        *("--transport-dtype", "bfloat16"),
    )
    second = fold / PERSONAL.format("site_02")
    choice = read_choice(second)
    assert choice is not None
    assert len(choice.scores) == 5
    assert len(set(choice.scores.values())) == 1
    assert choice.alpha == 0
    assert find_different(load_weights(fold), load_weights(second)) == []
    assert load_history(fold)["personal"]["site_02"]["cases"] == 0

    def diverge(self: PersonalTraining, trainer: FederatedRounds) -> np.ndarray:
        del self, trainer
        return np.full(1, np.nan, np.float32)

    monkeypatch.setattr(PersonalTraining, "_fine_tune", diverge)
    (second / PERSONAL_FILE).unlink()
    train(dataset_2d, "2d", 0, "--c")
    choice = read_choice(second)
    assert choice is not None
    assert choice.scores == {0.0: None}
    assert find_different(load_weights(fold), load_weights(second)) == []

    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([dataset_2d, "2d", "0", "--c", "--personal", "off", "-device", "cpu"])
    assert exit_.value.code == 2
    assert "--personal off: the run to continue has finetune" in capsys.readouterr().err


@pytest.mark.slow(15)
def test_with_differential_privacy_nothing_of_it_is_told(dataset_2d: str, train: Train) -> None:
    """Fine-tuning adds no noise, so its scores tell of the patients that it was trained on."""
    ledgers = (load_dataset(dataset_2d).folder / LEDGER).parent
    private = ("--dp-noise", 1.5, "--dp-batch", 3, "--dp-validation", "clear")
    try:
        fold = train(dataset_2d, "2d", 0, *FLAGS, *private, "--personal-min-cases", 1)
    finally:
        shutil.rmtree(ledgers, ignore_errors=True)

    record = load_history(fold)
    assert record["rounds"][0]["dice"] is not None  # as --dp-validation clear allows
    for site in ("site_01", "site_02"):
        assert record["personal"][site]["cases"] == 0
        assert record["personal"][site]["before"] is None
    choice = read_choice(fold / PERSONAL.format("site_02"))
    assert choice is not None
    assert sorted(choice.scores) == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.slow(15)
def test_a_classifier_is_chosen_by_auroc_and_begins_with_the_sites_own_batchnorm(
    results: Path, dataset_cls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    fine_tune = PersonalTraining._fine_tune

    def watch(self: PersonalTraining, trainer: FederatedRounds) -> np.ndarray:
        begun.append({name: t.clone() for name, t in trainer.network.state_dict().items()})
        return fine_tune(self, trainer)

    monkeypatch.setattr(PersonalTraining, "_fine_tune", watch)
    main(
        [
            *(dataset_cls, "2d_cls", "0", "-tr", "nnUNetTrainerCls", "--sites", "2"),
            *("--rounds", "1", "--batchnorm", "local", "--personal", "finetune"),
            *("--personal-iterations", "2", "-device", "cpu", "--quiet", "--partition", "iid"),
        ]
    )
    fold = next(results.glob("*/nnUNetTrainerClsFederated__*/fold_0"))

    for number, (site, told) in enumerate(sorted(load_history(fold)["personal"].items())):
        place = fold / "federation" / "sites" / site
        personal = next(place.glob("nnUNetTrainerClsPersonal__*/fold_0"))
        choice = read_choice(personal)
        assert choice is not None
        assert choice.metric == "AUROC"
        assert told["after"] == choice.scores[choice.alpha]
        state = torch.load(place / "after_round_0.pt", weights_only=True)["buffers"]
        norm = next(name for name in state if name.endswith("running_mean"))
        assert torch.equal(begun[number][norm], state[norm])
        assert not torch.equal(begun[number][norm], load_weights(fold)[norm])
