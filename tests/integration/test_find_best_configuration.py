"""What is chosen from sites' means is what nnU-Net chooses from all predictions in one place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle, save_pickle
from nnunetv2.evaluation.find_best_configuration import (
    find_best_configuration as of_nnunet,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunetv2_federated.cli.find_best_configuration import main
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import Dataset, load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_split
from nnunetv2_federated.nnunet.data.site_cases import sites_of_fold
from nnunetv2_federated.nnunet.environment import environment

FOLDS = (0, 1, 2, 3, 4)


def predicted(truth: NDArray[np.int8], seed: int, islands: float) -> NDArray[np.float32]:
    """Probabilities of a model that is often right, and sees islands that are not there."""
    rng = np.random.default_rng(seed)
    one_hot = np.stack([truth == label for label in range(3)]).astype(np.float32)
    noise = rng.random(one_hot.shape, np.float32)
    for _ in range(int(islands)):
        corner = [int(rng.integers(0, max(1, size - 3))) for size in truth.shape]
        noise[(1 + rng.integers(2), *(slice(c, c + 3) for c in corner))] += 2
    mixed = one_hot + 0.8 * noise
    found: NDArray[np.float32] = mixed / mixed.sum(0)
    return found


def pretend_training(
    dataset: Dataset, results: Path, configuration: str, islands: float, sites: dict[str, list[str]]
) -> None:
    """Write what a validated training of all folds leaves, with predictions drawn at random."""
    preprocessed = "3d_fullres" if (dataset.folder / "nnUNetPlans_3d_fullres").is_dir() else "2d"
    plans = PlansManager(dict(dataset.plans))
    io, manager = (
        plans.image_reader_writer_class(),
        plans.get_label_manager(dict(dataset.dataset_json)),
    )
    ending = dataset.dataset_json["file_ending"]
    folder = results / dataset.name / f"nnUNetTrainerFederated__nnUNetPlans__{configuration}"
    settings = FederationSettings()
    run = Run(dataset.name, configuration, 0, "nnUNetTrainer", "nnUNetPlans", "cpu", settings, ())
    for fold in FOLDS:
        validation = folder / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        (folder / f"fold_{fold}" / "federation").mkdir()
        dealt = sites_of_fold(dataset, preprocessed, fold, sites)
        text = replace(run, fold=fold, sites=dealt).to_json()
        (folder / f"fold_{fold}" / "federation" / "run.json").write_text(text)
        for case in fold_split(dataset, preprocessed, fold)[1]:
            reference = dataset.folder / "gt_segmentations" / (case + ending)
            truth, _ = io.read_seg(str(reference))
            seed = int(case[-2:]) + 100 * len(configuration)
            probabilities = predicted(truth[0], seed, islands)
            properties = load_pickle(
                str(dataset.folder / f"nnUNetPlans_{preprocessed}" / f"{case}.pkl")
            )
            np.savez_compressed(validation / f"{case}.npz", probabilities=probabilities)
            save_pickle(properties, str(validation / f"{case}.pkl"))
            segmentation = manager.convert_probabilities_to_segmentation(probabilities)
            io.write_seg(segmentation, str(validation / (case + ending)), properties)
    for name, content in (("plans", dataset.plans), ("dataset", dataset.dataset_json)):
        (folder / f"{name}.json").write_text(json.dumps(content))


def assert_equal(ours: Any, theirs: Any) -> None:
    """Compare JSON; numbers but for rounding, as sums are taken in another order."""
    if isinstance(theirs, dict):
        assert list(map(str, ours)) == list(map(str, theirs))
        for key in theirs:
            assert_equal(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-9)
    else:
        assert ours == theirs


@pytest.mark.parametrize("islands", [(0, 8), (6, 6)])
def test_the_choice_is_that_of_nnunet_on_pooled_predictions(
    dataset_3d: str,
    results: Path,
    tmp_path: Path,
    islands: tuple[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ensembles = islands == (0, 8)
    dataset = load_dataset(dataset_3d)
    cases = fold_split(dataset, "3d_fullres", "all")[0]
    sites = {"bern": cases[::2], "oslo": cases[1::2]}
    for configuration, count in zip(("2d", "3d_fullres"), islands, strict=True):
        pretend_training(dataset, results, configuration, count, sites)
    models = [
        {"plans": "nnUNetPlans", "configuration": name, "trainer": "nnUNetTrainerFederated"}
        for name in ("2d", "3d_fullres")
    ]
    pooled = tmp_path / "pooled"
    shutil.copytree(results, pooled)
    with environment(nnUNet_results=str(pooled)):
        expected = of_nnunet(dataset_3d, models, ensembles, 1, folds=FOLDS)

    flags = [] if ensembles else ["--disable_ensembling"]
    main([dataset_3d, "-c", "2d", "3d_fullres", "--min-cases", "3", *flags])
    said = capsys.readouterr().out
    assert "nnUNetv2_apply_postprocessing" in said
    found = json.loads((results / dataset.name / "inference_information.json").read_text())
    best, theirs = (i.pop("best_model_or_ensemble") for i in (found, expected))
    assert found["all_results"] == pytest.approx(expected["all_results"], abs=1e-9)
    for name in ("result_on_crossval_pre_pp", "result_on_crossval_post_pp"):
        assert best[name] == pytest.approx(theirs[name], abs=1e-9)
    chosen, others = (
        [(m["configuration"], m["trainer"], m["plans_identifier"]) for m in i]
        for i in (best["selected_model_or_models"], theirs["selected_model_or_models"])
    )
    assert chosen == others
    ours = Path(best["postprocessing_file"])
    stock = pooled / ours.relative_to(results)
    assert Path(theirs["postprocessing_file"]).relative_to(pooled) == ours.relative_to(results)
    (steps, kwargs), (stock_steps, stock_kwargs) = (load_pickle(str(p)) for p in (ours, stock))
    assert steps == stock_steps
    assert [np.ravel(k["labels_or_regions"]).tolist() for k in kwargs] == [
        np.ravel(k["labels_or_regions"]).tolist() for k in stock_kwargs
    ]
    for name in ("postprocessing.json", "summary.json", "postprocessed/summary.json"):
        one, other = (json.loads((p.parent / name).read_text()) for p in (ours, stock))
        assert one.pop("metric_per_case", []) == []
        other.pop("metric_per_case", None)
        assert_equal({k: one[k] for k in other}, other)
    assert not [text for text in results.rglob("crossval*/*.json") if "case_" in text.read_text()]


def test_a_small_site_is_left_out_by_name_and_what_is_missing_is_one_line(
    dataset_3d: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load_dataset(dataset_3d)
    cases = fold_split(dataset, "3d_fullres", "all")[0]
    for configuration in ("2d", "3d_fullres"):
        sites = {"bern": cases[:2], "oslo": cases[2:]}
        pretend_training(dataset, results, configuration, 2, sites)

    def refused(*argv: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([dataset_3d, *argv])
        assert exit_.value.code == 2
        return capsys.readouterr().err

    folder = results / dataset.name / "nnUNetTrainerFederated__nnUNetPlans__3d_fullres"
    assert "no site has so many validation cases" in refused("--min-cases", "50")
    assert "--min-cases 2: must be a whole number of at least 3" in refused("--min-cases", "2")
    assert "-f 0 0: name each once" in refused("-f", "0", "0")
    assert "--remote-sites: is for --server" in refused("--remote-sites", "bern")
    next((folder / "fold_0" / "validation").glob("*.npz")).unlink()
    assert "no softmax outputs in" in refused("-f", "0", "1")
    next((folder / "fold_1" / "validation").glob("*.nii.gz")).unlink()
    assert "1 of 8 validation cases have no prediction" in refused("-f", "0", "1")
    shutil.rmtree(folder / "fold_2")
    assert "3d_fullres fold 2 was not trained by a federation" in refused("-f", "0", "2")
    assert not list(results.rglob("crossval*")) + list(results.rglob("inference*"))

    main([dataset_3d, "-c", "2d", "--min-cases", "3"])
    said = capsys.readouterr().out
    assert "bern is left out: it has 2 validation cases, --min-cases is 3" in said
