"""What is compared, and what the tested cases say: literal figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nnunetv2_cls.tester import ClsTester
from nnunetv2_federated.cli.compare import command
from nnunetv2_federated.experiment.comparison import (
    Arm,
    Comparison,
    arm_sites,
    open_comparison,
    split_external,
)
from nnunetv2_federated.experiment.comparison_examples import choose_examples
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.tested_case import TestedCase
from nnunetv2_federated.nnunet.evaluation.tester import SegmentationTester
from nnunetv2_federated.report.statistics import ALL_SITES, paired_difference, pairs, spread, table

SITES = {"bern": ["b1", "b2"], "lyon": ["a1"], "oslo": ["c1"]}


def comparison(**changes):
    values = {
        "dataset": "Dataset901_Balls",
        "configuration": "2d",
        "plans_name": "nnUNetPlans",
        "plans_hash": "abc",
        "trainer": "nnUNetTrainer",
        "folds": [0],
        "seeds": [1],
        "sites": {1: SITES},
        "external": {},
        "arms": [Arm("centralised", {"rounds": 2})],
        "test_set": False,
        "test_sites": {},
    }
    return Comparison(**{**values, **changes})


def test_an_arm_trains_with_one_site_all_sites_or_all_cases_as_one():
    assert arm_sites(Arm("local/lyon", {}), SITES, 1) == {"lyon": ["a1"]}
    assert arm_sites(Arm("federated/fedavg", {}), SITES, 1) == SITES
    assert arm_sites(Arm("centralised", {}), SITES, 1) == {"centralised": ["a1", "b1", "b2", "c1"]}
    own = {"x": ["a1", "b1"], "y": ["b2", "c1"]}
    assert arm_sites(Arm("federated/iid", {}, {1: own}), SITES, 1) == own


def test_external_sites_train_nowhere():
    assert split_external(SITES, ["oslo"]) == (
        {"bern": ["b1", "b2"], "lyon": ["a1"]},
        {"oslo": ["c1"]},
    )
    with pytest.raises(SettingsError, match="the sites are bern, lyon, oslo"):
        split_external(SITES, ["rome"])
    with pytest.raises(SettingsError, match="no site is left"):
        split_external(SITES, ["bern", "lyon", "oslo"])


def test_a_folder_continues_its_own_comparison_and_refuses_another(tmp_path):
    folder = tmp_path / "out"
    assert not open_comparison(folder, comparison())
    assert open_comparison(folder, comparison())
    assert Comparison.from_json((folder / "comparison.json").read_text()) == comparison()
    with pytest.raises(SettingsError, match="with other seeds"):
        open_comparison(folder, comparison(seeds=[2]))
    with pytest.raises(SettingsError, match=r"with other arms \(centralised\)"):
        open_comparison(folder, comparison(arms=[Arm("centralised", {"rounds": 3})]))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(SettingsError, match="is not empty"):
        open_comparison(tmp_path / "mine", comparison())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "format 3, this installation knows 2: upgrade"),
        ({"format": None}, "format 1, this installation knows 2: .* older nnunetv2-federated"),
        ({"format": "x"}, "not the file of a comparison"),
    ],
)
def test_a_comparison_of_another_format_is_refused(tmp_path, change, words):
    open_comparison(tmp_path, comparison())
    path = tmp_path / "comparison.json"
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(SettingsError, match=words) as refusal:
        open_comparison(tmp_path, comparison())
    assert "comparison.json cannot be read" in str(refusal.value)
    assert "give another -o" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_reduced_table_replaces_what_it_names_table_by_table(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        "rounds = 120\nmomentum = 0.9\n[centralised]\nrounds = 240\nmomentum = 0.8\n"
        "[reduced]\nrounds = 2\n[reduced.centralised]\nrounds = 4\n"
    )
    argv = ["901", "2d", "0", "--settings", str(path)]
    assert command().parse(argv).rounds == 120
    less = command().parse([*argv, "--reduced"])
    assert (less.rounds, less.momentum) == (2, 0.9)
    assert less.centralised.given() == {"rounds": 4, "momentum": 0.8}
    path.write_text("rounds = 120\n")
    with pytest.raises(SettingsError, match=r"no table \[reduced\]"):
        command().parse([*argv, "--reduced"])


def test_spread_is_mean_and_sample_deviation_of_the_known():
    assert spread([1.0, 2.0, math.nan, 3.0]).mean == 2.0
    assert spread([1.0, 2.0, 3.0]).std == 1.0
    assert str(spread([0.5])) == "0.5000"
    assert str(spread([])) == "-"


def dice(case, site, value, patient=None):
    return TestedCase.of(
        {
            "case": case, "site": site, "subset": "Tr", "patient": patient, "shown": "",
            "metrics": {"Dice lung": value}, "score": value,
        }
    )  # fmt: skip


MEASURE = SegmentationTester().measure
OURS = [
    dice("a", "bern", 0.9),
    dice("b", "bern", 0.8),
    dice("c", "lyon", 0.7),
    dice("x", "rome", 0),
]
THEIRS = [
    dice("a", "bern", 0.8), dice("b", "bern", 0.6), dice("c", "lyon", None), dice("x", "rome", 1)
]  # fmt: skip


def test_dice_of_a_group_is_the_mean_over_its_cases_and_classes():
    cells = table({(1, 0): OURS, (2, 0): THEIRS}, ["bern", ALL_SITES, "rome"], ["rome"], MEASURE)
    assert cells["bern"]["Dice"].mean == pytest.approx((0.85 + 0.7) / 2)
    assert cells[ALL_SITES]["Dice"].mean == pytest.approx((0.8 + 0.7) / 2)
    assert cells["rome"]["Dice lung"].mean == 0.5
    records = [{"metrics": {"Dice a": 1.0, "Dice b": 0.5, "HD95 a": 3.0}}]
    assert MEASURE(records, None) == {"Dice": 0.75, "Dice a": 1.0, "Dice b": 0.5, "HD95 a": 3.0}
    assert MEASURE(records, ("Dice",)) == {"Dice": 0.75}


def test_a_paired_difference_is_taken_on_the_same_cases():
    """A constant difference has an interval of no width, however much the cases differ."""
    second = [dice(t.case, t.site, t.score - 0.1) for t in OURS]
    arms = {"f": {(1, 0): OURS, (2, 0): OURS}, "l": {(1, 0): second}}
    found = paired_difference(arms, ("f", "l"), ALL_SITES, ["rome"], MEASURE, metric="Dice")
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.cases == 3
    alone = paired_difference(arms, ("f", "l"), "lyon", ["rome"], MEASURE, metric="Dice")
    assert (alone.value, alone.low) == (pytest.approx(0.1), None)


def test_an_interval_is_that_of_the_mean_difference():
    """Differences 0 and 1, half each of 100 cases: 0.5 +- 1.96 * 0.05."""
    first = [dice(f"{i:03d}", "bern", i % 2) for i in range(100)]
    second = [dice(f"{i:03d}", "bern", 0) for i in range(100)]
    arms = {"f": {(1, 0): first}, "l": {(1, 0): second}}
    found = paired_difference(arms, ("f", "l"), "bern", [], MEASURE, metric="Dice")
    assert found.value == 0.5
    assert found.low == pytest.approx(0.402, abs=0.02)
    assert found.high == pytest.approx(0.598, abs=0.02)


def test_an_interval_is_by_patient_where_patients_are_known():
    """25 patients of four like cases each, half of them 1: as wide as of 25 cases, 1.96 * 0.1."""
    first = [dice(f"{i:03d}", "bern", i // 4 % 2, f"P{i // 4}") for i in range(100)]
    second = [dice(f"{i:03d}", "bern", 0, f"P{i // 4}") for i in range(100)]
    arms = {"f": {(1, 0): first}, "l": {(1, 0): second}}
    found = paired_difference(arms, ("f", "l"), "bern", [], MEASURE, metric="Dice")
    assert found.value == 0.48  # 12 of 25
    assert found.low == pytest.approx(0.284, abs=0.04)
    assert found.high == pytest.approx(0.676, abs=0.04)
    assert found.cases == 100


def test_a_classifier_is_measured_by_auroc_first_and_the_same_in_a_bootstrap():
    probabilities = [0.1, 0.6, 0.4, 0.9]
    records = [
        {"class": c, "probabilities": [1 - p, p], "threshold": 0.5}
        for c, p in zip((0, 0, 1, 1), probabilities, strict=True)
    ]
    found = ClsTester().measure(records, None)
    assert list(found)[:2] == ["AUROC", "accuracy"]
    assert (found["AUROC"], found["accuracy"]) == (0.75, 0.5)
    assert ClsTester().measure(records, ("AUROC",)) == {"AUROC": 0.75}
    assert ClsTester().measure(records, ("accuracy",)) == {"accuracy": 0.5}


def test_the_federation_is_compared_with_each_site_there_and_everywhere():
    arms = ["local/bern", "federated/fedavg", "federated/fedprox", "centralised"]
    assert pairs(arms, ["bern"]) == [
        (("federated/fedavg", "local/bern"), ALL_SITES),
        (("federated/fedavg", "local/bern"), "bern"),
        (("federated/fedavg", "centralised"), ALL_SITES),
        (("federated/fedprox", "centralised"), ALL_SITES),
        (("federated/fedprox", "federated/fedavg"), ALL_SITES),
    ]


def test_examples_are_the_median_of_each_site_and_the_worst():
    cases = [dice(f"b{i}", "bern", i / 10) for i in range(5)] + [dice("a", "lyon", 0.9)]
    assert [tested.case for tested in choose_examples(cases)] == ["b2", "a", "b0"]


def test_missing_references_are_named(tmp_path):
    (tmp_path / "labelsTs").mkdir()
    with pytest.raises(ValueError, match=r"1 of 1 test cases have no reference: .*t1\.png"):
        SegmentationTester().references(tmp_path, {"file_ending": ".png"}, "Ts", ["t1"])
    dataset_json = {"classes": {"rows": 0, "columns": 1}}
    with pytest.raises(ValueError, match=r"labelsTs\.json does not exist"):
        ClsTester().references(tmp_path, dataset_json, "Ts", ["t1"])
    (tmp_path / "dataset.json").write_text(json.dumps(dataset_json))
    (tmp_path / "labelsTs.json").write_text(json.dumps({"t1": 1}))
    assert ClsTester().references(tmp_path, dataset_json, "Ts", ["t1"]) == {"t1": 1}


@pytest.mark.parametrize(("shift", "nsd", "hd95"), [(0, 1.0, 0.0), (1, 1.0, 1.0)])
def test_surface_distances_of_a_shifted_square(tmp_path, shift, nsd, hd95):
    pytest.importorskip("monai", reason="NSD and HD95 come with the extra 'surface'")
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO  # noqa: PLC0415
    from skimage import io  # noqa: PLC0415

    from nnunetv2_federated.nnunet.evaluation.surface_distances import surface_metrics  # noqa: PLC0415

    for name, start in (("truth", 10), ("ours", 10 + shift)):
        mask = np.zeros((32, 32), np.uint8)
        mask[10:20, start : start + 10] = 1
        io.imsave(tmp_path / f"{name}.png", mask, check_contrast=False)
    found = surface_metrics(
        str(tmp_path / "truth.png"), str(tmp_path / "ours.png"), NaturalImage2DIO(), 1, None
    )
    assert found == {"NSD": nsd, "HD95": hd95}
