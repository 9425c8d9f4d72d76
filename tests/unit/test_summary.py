"""Full validations of several sites, pooled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from nnunetv2_federated.federation.messages import (
    FullValidation,
)
from nnunetv2_federated.nnunet.summary import pool_sites, summarise_site


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
