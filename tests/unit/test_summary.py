"""Full validations of several sites, pooled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from nnunetv2_federated.federation.messages import FullValidation
from nnunetv2_federated.nnunet.summary import only_own, pool_sites, summarise_site


def test_pooled_means_are_those_of_all_cases_together(tmp_path: Path) -> None:
    def write(name: str, dices: list[float]) -> Path:
        rows = [{"metrics": {"1": {"Dice": dice}}} for dice in dices]
        seen = [dice for dice in dices if dice == dice]  # noqa: PLR0124  # not NaN
        mean = sum(seen) / len(seen) if seen else float("nan")
        folder = tmp_path / name / "validation"
        folder.mkdir(parents=True)
        content = {"foreground_mean": {"Dice": mean}, "mean": {"1": {"Dice": mean}}}
        (folder / "summary.json").write_text(json.dumps({**content, "metric_per_case": rows}))
        return tmp_path / name

    nan = float("nan")
    told = [
        summarise_site("bern", 3, write("bern", [0.9, 0.6, nan])),
        summarise_site("oslo", 1, write("oslo", [0.3])),
        summarise_site("lyon", 1, write("lyon", [nan])),
    ]

    assert told[0].mean == {"1": {"Dice": [0.75, 2]}}
    assert told[2].mean == {"1": {"Dice": [0.0, 0]}}
    assert pool_sites(told)["foreground_mean"]["Dice"] == pytest.approx(0.6)  # 1.8 / 3
    assert all("case" not in json.dumps(asdict(site)["mean"]) for site in told)


def test_a_classifier_is_pooled_by_its_cases() -> None:
    told = [
        FullValidation("bern", 30, {"AUROC": 0.9}, {}),
        FullValidation("oslo", 10, {"AUROC": 0.5}, {}),
        FullValidation("lyon", 0, {}, {}),
    ]
    assert pool_sites(told)["foreground_mean"] == {"AUROC": pytest.approx(0.8)}


def test_an_answer_of_other_cases_or_classes_is_left_out_by_name() -> None:
    """A site that adds a class or claims a million cases would move the mean of all."""
    both = {"1": {"Dice": [0.5, 4.0]}, "2": {"Dice": [0.5, 4.0]}}
    honest = FullValidation("bern", 4, {"Dice": 0.5}, both)
    answers = {
        "bern": honest,
        "lyon": FullValidation("lyon", 4, {"Dice": 1.0}, {"1": {"Dice": [1.0, 4.0]}}),
        "oslo": FullValidation("oslo", 10**6, {"Dice": 1.0}, both),
        "rome": FullValidation("bern", 4, {"Dice": 0.5}, both),
        "wien": FullValidation("wien", 0, {}, {}),
    }
    cases = dict.fromkeys(answers, 4) | {"wien": 0}
    said: list[str] = []
    assert list(only_own(answers, cases, ["1", "2"], said.append)) == ["bern", "wien"]
    assert said == [
        "lyon did not validate: answers for other classes than those of the dataset",
        "oslo did not validate: answers for other cases than it said",
        "rome did not validate: answers for other cases than it said",
    ]
    # a classifier's summary has metrics of its own
    assert "lyon" in only_own(answers, cases, None, said.append)
