"""``nnUNetv2_federated_attack``: a finished model, and trainings with canaries."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_privacy_canaries import WithoutClipping

from nnunetv2_cls.loader import fit_image
from nnunetv2_federated.cli.attack import main
from nnunetv2_federated.experiment import canary_audit
from nnunetv2_federated.experiment.attacked_model import (
    Target,
    a_trainer,
    find_model,
    load_weights,
    members_and_others,
)
from nnunetv2_federated.experiment.canary_audit import CanarySettings, audit_training
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.privacy_attacks import (
    CanaryAudit,
    MembershipTest,
    read_attack,
)
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.evaluation.case_losses import CaseLosses
from nnunetv2_federated.nnunet.privacy import private_steps
from nnunetv2_federated.nnunet.privacy.poisson import PoissonPatients

Train = Callable[..., Path]


def test_a_finished_federation_is_attacked_with_the_cases_of_its_sites(
    dataset_2d: str, train: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fold = train(dataset_2d, "2d", 0, "--sites", 2, "--rounds", 1)
    capsys.readouterr()
    argv = [dataset_2d, "2d", "0", "-device", "cpu"]

    main(argv)

    said = capsys.readouterr().out
    found = read_attack(fold / "membership.json", MembershipTest)
    assert (found.members, found.others, found.unit, found.calibrated) == (9, 3, "case", False)
    assert f"{found.auc:.3f}" in said
    assert "9 cases of the training and 3 others" in (fold / "membership.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in fold.parents[1].rglob("*")}

    # the reference is the model itself: no difference is left
    own = ["--reference", str(fold / "checkpoint_final.pth"), "-o", str(tmp_path / "found")]
    main([*argv, *own])
    found = read_attack(tmp_path / "found" / "membership.json", MembershipTest)
    assert (found.auc, found.calibrated) == (0.5, True)

    model = find_model(Target(dataset_2d, "2d", 0, device="cpu"))
    sites = json.loads((fold / "federation" / "run.json").read_text())["sites"]
    for site in sites:
        own_cases = (site["training_cases"], site["validation_cases"])
        if site["validation_cases"]:
            assert members_and_others(model, site["name"]) == tuple(map(sorted, own_cases))
    with pytest.raises(
        SettingsError, match=r"--site rome: Dataset901_Balls .* was trained at site_01, site_02\.$"
    ):
        members_and_others(model, "rome")
    with pytest.raises(SettingsError, match="kept no case of Dataset901_Balls out"):
        members_and_others(
            replace(model, run=replace(model.run, fold="all"), folder=tmp_path), None
        )

    with a_trainer(model.run, model.dataset) as trainer:
        losses = CaseLosses(trainer, ["case_00", "case_01"], 3)
        untrained = losses.of("case_00")
        load_weights(trainer, model.checkpoint)
        trained = losses.of("case_00")
        assert len({untrained, trained, losses.of("case_01")}) == 3
        assert losses.of("case_00") == trained
        other = torch.nn.Linear(2, 2).state_dict()
        torch.save({"network_weights": other}, tmp_path / "other.pth")
        with pytest.raises(SettingsError, match=r"other\.pth: has weights of another network"):
            load_weights(trainer, tmp_path / "other.pth")
        with pytest.raises(SettingsError, match=r"none\.pth: cannot be read"):
            load_weights(trainer, tmp_path / "none.pth")
    assert {path: path.stat().st_mtime_ns for path in fold.parents[1].rglob("*")} == before


def test_the_loss_of_an_image_is_the_cross_entropy_of_its_class(
    dataset_cls: str, results: Path
) -> None:
    dataset = load_dataset(dataset_cls)
    run = Target(dataset_cls, "2d_cls", 0, device="cpu").run(dataset)
    assert run.trainer == "nnUNetTrainerCls"
    with a_trainer(run, dataset) as trainer:
        losses = CaseLosses(trainer, ["case_03", "case_04"], 4)
        found = [losses.of(case) for case in ("case_03", "case_04")]
        images = trainer.dataset_class(trainer.preprocessed_dataset_folder, None)
        size = trainer.configuration_manager.patch_size
        with torch.no_grad():
            for case, label, loss in (("case_03", 1, found[0]), ("case_04", 0, found[1])):
                image = fit_image(images.load_case(case)[0][:], size)
                probabilities = trainer.network(image[None]).softmax(1)[0]
                assert loss == pytest.approx(-math.log(probabilities[label]), rel=1e-5)
    assert not results.exists() or not list(results.iterdir())


def everybody(patients: PoissonPatients) -> list[str]:
    """Draw every patient, whatever the probability."""
    return [cases[0] for cases in patients._patients.values()]


@pytest.mark.parametrize("broken", ["", "clipping", "drawing"])
def test_a_training_that_keeps_less_than_is_promised_is_contradicted(
    dataset_2d: str, results: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    settings = CanarySettings(
        canaries=120, steps=3, noise=4.0, clip=0.5, probability=0.9, delta=1e-5
    )
    if broken == "clipping":
        monkeypatch.setattr(private_steps, "ClippedSum", WithoutClipping)
    if broken == "drawing":
        settings = replace(settings, noise=1.0, probability=0.02, steps=8)
        monkeypatch.setattr(PoissonPatients, "draw", everybody)
    target = Target(dataset_2d, "2d", 0, device="cpu")

    found = audit_training(target, settings, np.random.default_rng(4))

    assert found.contradicts == bool(broken)
    assert found.canaries == 120
    assert not results.exists() or not list(results.iterdir())


def test_more_canaries_than_parameters_are_refused(dataset_2d: str, results: Path) -> None:
    settings = CanarySettings(3_000_000, 1, 1.0, 1.0, 1.0, 1e-5)
    with pytest.raises(
        SettingsError,
        match=r"--canaries 3000000: 3000000 canaries do not fit \d+ parameters; give fewer",
    ):
        audit_training(Target(dataset_2d, "2d", 0, device="cpu"), settings)
    assert not results.exists()


def test_canaries_alone_are_printed_beside_the_accountant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["--canaries", "200", "--noise", "2", "--steps", "2", "-o", str(tmp_path / "found")])
    said = capsys.readouterr().out
    found = read_attack(tmp_path / "found" / "canaries.json", CanaryAudit)
    # two releases with twice the noise are one with sqrt(2) times: Balle and Wang 2018, theorem 8
    assert found.epsilon == pytest.approx(2.943, abs=0.002)
    assert found.bound <= found.epsilon
    assert f"Epsilon is at least {found.bound:.2f}" in said
    assert "## Canaries" in (tmp_path / "found" / "canaries.md").read_text()

    monkeypatch.setattr(canary_audit, "epsilon_of", lambda *_: 0.01)
    with pytest.raises(SystemExit) as end:
        main(["--canaries", "1000", "--noise", "0.5"])
    assert end.value.code == 1
    assert "and not 0.01" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give DATASET CONFIGURATION FOLD of a finished model"),
        (["901", "2d"], "give DATASET CONFIGURATION FOLD"),
        (["901", "--canaries", "9"], "give DATASET CONFIGURATION FOLD"),
        (["901", "2d", "0", "--noise", "2"], "--noise 2.0: needs --canaries"),
        (["--canaries", "9", "--site", "bern"], "--site bern: is of a finished model"),
        (["--canaries", "1"], "--canaries 1: must be a whole number from 2 to 100000"),
        (["--canaries", "9", "--probability", "0"], "--probability 0.0: must be above 0 and at"),
        (["--canaries", "9", "--delta", "1"], "--delta 1.0: must be above 0 and below 1"),
        (["--canaries", "9", "--clip", "nan"], "--clip nan: must be a number above 0"),
        (["901", "2d", "0", "--patches", "1"], "--patches 1: must be a whole number of at"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words}")


def test_a_model_that_is_not_there_is_looked_for_under_both_names(
    dataset_2d: str, results: Path
) -> None:
    with pytest.raises(SettingsError, match=r"nnUNetTrainer__.* and .*nnUNetTrainerFederated__"):
        find_model(Target(dataset_2d, "2d", 1, "nnUNetTrainer", device="cpu"))
    assert not results.exists()
