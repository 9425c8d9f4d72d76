"""A stock nnU-Net is evaluated at three sites that never trained."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from consortium import Consortium
from coordinator import Coordinator, refusal
from flwr.app import Message
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from small_datasets import write_dataset

from nnunetv2_federated import evaluate_model
from nnunetv2_federated.cli.evaluate import main
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    SiteEvaluation,
    WeightsTask,
)
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.limits import Limits
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.proposal_text import describe_here
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.records import unpack_payload
from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.evaluation.built_model import Machine
from nnunetv2_federated.nnunet.evaluation.model_files import WhichModel
from nnunetv2_federated.nnunet.evaluation.read_model import read_model
from nnunetv2_federated.nnunet.training.weights import load_vector, to_vector

SITES = {"Dataset962_Bern": (32, 36), "Dataset963_Lyon": (36, 32), "Dataset964_Oslo": (40, 32)}
CASES = {"Dataset962_Bern": 6, "Dataset963_Lyon": 5, "Dataset964_Oslo": 8}


def train_stock(preprocessed: Path) -> Path:
    """Train a few steps as ``nnUNetv2_train`` does, with nothing of this package."""
    plans, dataset_json = (
        json.loads((preprocessed / name).read_text())
        for name in ("nnUNetPlans.json", "dataset.json")
    )
    torch.manual_seed(0)
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "2d", 0, dataset_json, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 12
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    return Path(trainer.output_folder)


def another_fold(first: Path) -> None:
    """Make a fold that segments a little otherwise."""
    checkpoint = torch.load(first / "checkpoint_final.pth", weights_only=False)
    for name, weights in checkpoint["network_weights"].items():
        if "seg_layers" in name and name.endswith("bias"):
            weights[0] += 0.4
    shutil.copytree(first, first.parent / "fold_1")
    torch.save(checkpoint, first.parent / "fold_1" / "checkpoint_final.pth")


@pytest.fixture(scope="module")
def stock_model(
    dataset_2d: str, nnunet_folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Result folder of two trained folds; beside it the raw datasets of three sites."""
    del dataset_2d  # 901
    for number, (name, shape) in enumerate(SITES.items()):
        write_dataset(
            nnunet_folders / "raw", name, shape, cases=CASES[name], first=100 * (number + 1)
        )
    patients = "".join(f"case_{i:02d},patient_{i // 2}\n" for i in range(8))
    (nnunet_folders / "raw" / "Dataset964_Oslo" / "cases.csv").write_text(
        "case,patient\n" + patients
    )
    results = tmp_path_factory.mktemp("stock_results")
    with environment(nnUNet_results=str(results), nnUNet_n_proc_DA="0"):
        fold = train_stock(nnunet_folders / "preprocessed" / "Dataset901_Balls")
    another_fold(fold)
    yield fold.parent
    for name in SITES:
        shutil.rmtree(nnunet_folders / "raw" / name)


def evaluate(model: Path, output: Path, *flags: object) -> dict[str, Any]:
    argv = [model, "--site-datasets", *SITES, "-device", "cpu", "-o", output, *flags]
    main([str(arg) for arg in argv])
    found: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return found


def stock_summary(model: Path, raw: Path, scratch: Path, folds: tuple[int, ...]) -> dict[str, Any]:
    """Predict the cases of all sites with nnU-Net, and evaluate them together with nnU-Net."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    predicted, references = scratch / "predicted", scratch / "references"
    predicted.mkdir(), references.mkdir()
    for site in SITES:
        for image in sorted((raw / site / "imagesTr").iterdir()):
            case = image.name.removesuffix("_0000.png")
            predictor.predict_from_files_sequential(
                [[str(image)]], [str(predicted / f"{site}_{case}")]
            )
            label = raw / site / "labelsTr" / f"{case}.png"
            shutil.copy(label, references / f"{site}_{case}.png")
    files = [str(model / name) for name in ("dataset.json", "plans.json")]
    compute_metrics_on_folder2(str(references), str(predicted), *files, num_processes=1)
    found: dict[str, Any] = json.loads((predicted / "summary.json").read_text())
    return found


class Recorded:
    """Every message of both directions, as text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        self.kinds: list[str] = []
        deliver = InProcessGrid._deliver

        def record(grid: InProcessGrid, message: Message) -> Message:
            answer = deliver(grid, message)
            self.kinds.append(message.metadata.message_type)
            for one in (message, answer):
                for records in one.content.config_records.values():
                    self.texts += [value for value in records.values() if isinstance(value, str)]
            return answer

        monkeypatch.setattr(InProcessGrid, "_deliver", record)


def test_it_equals_stock_nnunet_on_the_pooled_predictions_and_names_no_case(
    stock_model: Path, nnunet_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = Recorded(monkeypatch)
    found = evaluate(
        stock_model, tmp_path / "out", "--metrics", "Dice", "IoU", "--min-cases", "3",
        "--against", stock_model / "fold_1",
    )  # fmt: skip
    stock = stock_summary(stock_model, nnunet_folders / "raw", tmp_path, (0, 1))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())

    for metric in ("Dice", "IoU"):
        expected = stock["foreground_mean"][metric]
        assert 0.1 < expected < 0.99
        assert summary["foreground_mean"][metric] == pytest.approx(expected, abs=1e-9)
        for label in ("1", "2"):
            expected = stock["mean"][label][metric]
            assert summary["mean"][label][metric] == pytest.approx(expected, abs=1e-9)
    assert summary["metric_per_case"] == []
    other = json.loads((tmp_path / "out" / "summary_2.json").read_text())
    difference = summary["mean"]["1"]["Dice"] - other["mean"]["1"]["Dice"]
    assert found["difference"]["labels"]["1"]["Dice"]["mean"] == pytest.approx(difference, abs=1e-9)
    assert difference != 0
    oslo = found["sites"]["Dataset964_Oslo"]
    assert (oslo["cases"], oslo["patients"], oslo["unit"]) == (8, 4, "patient")
    assert found["sites"]["Dataset962_Bern"]["unit"] == "case"

    of_cases = {
        repr(case["metrics"][label][metric])[:10]
        for case in stock["metric_per_case"]
        for label in ("1", "2")
        for metric in ("Dice", "IoU")
    }
    values = {value for value in of_cases if len(value) == 10}  # not 0.0, 0.5 and the like
    assert (
        messages.kinds == ["query.evaluation"] * 3 + ["query.weights"] * 9 + ["query.measure"] * 3
    )
    assert len(values) > 40
    for text in messages.texts:
        assert not re.search(r"case_|patient_|imagesTr|labelsTr|\.pkl|\.pth|Dataset901", text)
        assert str(nnunet_folders) not in text
        assert not any(value in text for value in values)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "case_0" not in page
    assert "Dataset963_Lyon" in page
    assert "Paired differences" in page


def test_a_zip_of_nnunet_and_a_call_from_python(
    stock_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(stock_model.parents[1]))
    for fold in (0, 1):  # what a training leaves at its end
        (stock_model / f"fold_{fold}" / "validation").mkdir(exist_ok=True)
        (stock_model / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
    exported = tmp_path / "stock.zip"
    export_pretrained_model("Dataset901_Balls", str(exported), ("2d",), folds=(0, 1))
    said: list[str] = []

    found = [
        evaluate_model(
            model, site_datasets=["Dataset962_Bern"], device="cpu", folds=[1], metrics=["Dice"],
            output=tmp_path / name, say=said.append,
        )
        for name, model in (("a", exported), ("b", str(stock_model)))
    ]  # fmt: skip

    assert found[0].summary == found[1].summary
    assert found[0].report.is_file()
    hashes = {line.rpartition(" ")[2] for line in said if "SHA-256" in line}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--min-cases", "7"],
            "site Dataset962_Bern: has 6 cases to evaluate on; nothing is told of",
        ),
        (
            ["--quantiles", "0.25", "--min-cases", "3"],
            "--quantiles 0.25: site Dataset962_Bern has 6 cases, too few for 3",
        ),
        (["--min-cases", "2"], "--min-cases 2: must be a whole number of at least 3."),
        (["--quantiles", "1.5"], "--quantiles 1.5: must be 1 to 9 numbers between 0 and 1."),
        (["-f", "4"], "has no fold_4/checkpoint_final.pth: see -f and -chk."),
        (["-chk", "../x"], "-chk ../x: give the name of a file."),
        (
            ["--test-set"],
            "its dataset cannot be evaluated on; the site's log says more (evaluation). Here: ",
        ),
        (["--listen", "127.0.0.1:1"], "--listen: is for --server HOST:PORT only."),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    stock_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate(stock_model, tmp_path / "out", "--metrics", "Dice", *flags)

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    assert words in error
    assert not (tmp_path / "out").exists()


def test_surface_metrics_need_monai_and_an_evaluation_is_not_replaced(
    stock_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: dict[str, Any] = {"site_datasets": ["962"], "output": tmp_path}
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"has a summary.json already; give a new folder"):
        evaluate_model(stock_model, **choices)
    (tmp_path / "summary.json").unlink()
    monkeypatch.setattr("nnunetv2_federated.experiment.evaluation_plan.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="--metrics HD95: HD95 needs MONAI: pip install"):
        evaluate_model(stock_model, **choices, metrics=["HD95"])
    with pytest.raises(SettingsError, match="no sites: give --site-datasets DATASET"):
        evaluate_model(stock_model, output=tmp_path)


def test_a_site_of_other_labels_or_channels_is_named(
    stock_model: Path, nnunet_folders: Path, tmp_path: Path
) -> None:
    path = nnunet_folders / "raw" / "Dataset963_Lyon" / "dataset.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"labels": {"background": 0, "one": 1}}))
        with pytest.raises(
            SettingsError, match=r"site Dataset963_Lyon: labels of its dataset\.json"
        ):
            evaluate_model(
                stock_model, site_datasets=["962", "963"], metrics=["Dice"], device="cpu",
                output=tmp_path / "out",
            )  # fmt: skip
    finally:
        path.write_text(before)


def test_batchnorm_keeps_its_statistics(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    network(torch.randn(4, 1, 8, 8) + 3)
    store = WeightsStore(tmp_path)
    sent = store.put(to_vector(network))
    other = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    load_vector(other, store.get(sent))

    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        np.testing.assert_array_equal(other.eval()(image), network.eval()(image))
    assert (tmp_path / f"{sent}.npy").stat().st_mode & 0o077 == 0


# A hospital that takes part by testing only


class Hospital:
    """One site behind its guards, and what the coordinator asks it for."""

    def __init__(self, model: Path, folder: Path, **limits: int) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        here = LocalSite("bern", "Dataset962_Bern", folder / "work", "cpu", Limits(**limits))
        self.guarded = GuardedSite(here, record=lambda event, **f: self.events.append((event, f)))
        self.coordinator = Coordinator(self.guarded)
        self.sent = WeightsStore(folder / "sent")
        machine = Machine("cpu")
        self.model = read_model(model, WhichModel(), self.sent, machine, postprocess=True)

    def proposal(self, **changes: Any) -> EvaluationProposal:
        content: dict[str, Any] = {
            "models": [self.model], "subset": "Tr", "metrics": ["Dice"], "min_cases": 5,
            "quantiles": [0.5],
        }  # fmt: skip
        return EvaluationProposal(**content | changes)

    def offer(self, proposal: EvaluationProposal) -> Message:
        return self.coordinator.ask("query.evaluation", proposal.to_json())

    def send(self, proposal: EvaluationProposal, fold: int, vector: Any) -> Message:
        task = WeightsTask(proposal.approval(), 0, fold)
        return self.coordinator.ask("query.weights", task.to_json(), vector)

    def send_all(self, proposal: EvaluationProposal) -> None:
        for fold, sha256 in enumerate(self.model.weights):
            assert not self.send(proposal, fold, self.sent.get(sha256)).has_error()

    def measure(self, proposal: EvaluationProposal) -> Message:
        return self.coordinator.ask("query.measure", MeasureTask(proposal.approval()).to_json())


def test_a_hospital_evaluates_what_it_approved_once(
    stock_model: Path, nnunet_folders: Path, tmp_path: Path
) -> None:
    hospital = Hospital(stock_model, tmp_path, max_evaluations=1)
    asked = hospital.proposal()
    vectors = [hospital.sent.get(sha256) for sha256 in hospital.model.weights]

    assert "has not approved evaluation" in refusal(hospital.offer(asked))
    assert "has not agreed to the evaluation" in refusal(hospital.send(asked, 0, vectors[0]))
    assert "has not agreed to the evaluation" in refusal(hospital.measure(asked))
    words = "\n".join(describe_here(hospital.guarded.consent.proposed() or asked, "962"))
    assert hospital.model.sha256 in words
    assert "tells count, mean and variance of Dice of each label, of at least 5 patients" in words
    hospital.guarded.consent.approve(asked.approval(), "test")
    offer = hospital.offer(asked)
    assert EvaluationOffer.from_json(unpack_payload(offer.content)).cases == 6

    assert "refused weights of another hash" in refusal(hospital.send(asked, 0, vectors[1]))
    assert "refused weights of a fold" in refusal(hospital.send(asked, 2, vectors[1]))
    assert "was not sent the weights" in refusal(hospital.measure(asked))
    assert hospital.guarded.ledger.spent("Dataset962_Bern").evaluations == 0
    hospital.send_all(asked)
    text = unpack_payload(hospital.measure(asked).content)

    answer = SiteEvaluation.from_json(text)
    assert (answer.site, answer.cases, answer.patients) == ("bern", 6, 6)
    found = answer.models[0].labels["1"]["Dice"]
    assert found is not None
    assert found.quantiles is None  # six are too few
    assert "case_0" not in text
    assert list((tmp_path / "work" / "evaluated").iterdir()) == []
    # the same question again is answered as before, even if a patient has come in between
    raw = nnunet_folders / "raw" / "Dataset962_Bern"
    hidden = tmp_path / "case_00.png"
    shutil.move(raw / "imagesTr" / "case_00_0000.png", hidden)
    try:
        assert unpack_payload(hospital.measure(asked).content) == text
    finally:
        shutil.move(hidden, raw / "imagesTr" / "case_00_0000.png")
    spent = hospital.guarded.ledger.spent("Dataset962_Bern")
    assert spent.evaluations == 1
    assert spent.hours > 0
    # another question needs another approval, and another evaluation
    other = hospital.proposal(min_cases=6)
    hospital.guarded.consent.approve(other.approval(), "test")
    assert "has given its 1 evaluations" in refusal(hospital.offer(other))
    hospital.guarded.consent.withdraw(asked.approval(), "test")
    assert "was withdrawn" in refusal(hospital.measure(asked))
    kinds = [(event, fields.get("message")) for event, fields in hospital.events]
    assert ("left", "query.measure") in kinds
    assert ("proposed", None) in kinds
    hospital.guarded.close()


def test_a_hospital_refuses_a_model_that_names_code_before_it_is_asked(
    stock_model: Path, tmp_path: Path
) -> None:
    hospital = Hospital(stock_model, tmp_path)
    plans = hospital.model.plans | {"experiment_planner_used": "system"}
    for bad, words in (
        ({"trainer": "os"}, "refused|trainer os"),
        ({"plans": plans}, "'system' is not an allowed planner"),
        ({"configuration": "3d_fullres"}, "configuration 3d_fullres is unknown"),
    ):
        asked = hospital.proposal(models=[dataclasses.replace(hospital.model, **bad)])
        assert re.search(words, refusal(hospital.offer(asked)))
        assert hospital.guarded.consent.proposed() is None
    labels = {"background": 0, "one": 1}
    other = hospital.model.dataset_json | {"labels": labels}
    asked = hospital.proposal(models=[dataclasses.replace(hospital.model, dataset_json=other)])
    hospital.guarded.consent.approve(asked.approval(), "test")
    assert "site bern: labels of its dataset.json is" in refusal(hospital.offer(asked))
    hospital.guarded.close()


@pytest.mark.deployment(20)
def test_hospitals_without_plans_evaluate_over_a_network(
    stock_model: Path, nnunet_folders: Path, tmp_path: Path
) -> None:
    raw = nnunet_folders / "raw" / "Dataset962_Bern"
    cases = [f"case_{number:02d}" for number in range(6)]
    sites = {"bern": cases[:3], "oslo": cases[3:]}
    consortium = Consortium(tmp_path, raw, sites, raw=raw)
    credentials = tmp_path / "credentials" / "server"
    (tmp_path / "server").mkdir()
    try:
        consortium.start(
            "server",
            *("nnunetv2_federated.cli.evaluate", str(stock_model), "--metrics", "Dice"),
            *("--server", f"localhost:{consortium.port}", "--credentials", str(credentials)),
            *("--min-cases", "3", "-device", "cpu", "-o", str(tmp_path / "out")),
        )
        for site in sites:
            consortium.start_site(site)
        for site in sites:
            consortium.approve(site, "evaluation")
        assert consortium.wait_for_server() == 0, consortium.all_said()
    finally:
        consortium.stop()

    here = evaluate_model(
        stock_model, site_datasets=["962"], device="cpu", metrics=["Dice"], output=tmp_path / "here"
    )
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    for label in ("1", "2"):
        expected = here.summary["mean"][label]["Dice"]
        assert found["mean"][label]["Dice"] == pytest.approx(expected, abs=1e-9)
    assert not (tmp_path / "bern" / "preprocessed").exists()
    log = next((tmp_path / "credentials" / "sites" / "bern").rglob("audit.jsonl")).read_text()
    events = [json.loads(line) for line in log.splitlines()]
    left = [event["message"] for event in events if event["event"] == "left"]
    assert left == ["query.evaluation", "query.weights", "query.weights", "query.measure"]
    assert "case_0" not in log
