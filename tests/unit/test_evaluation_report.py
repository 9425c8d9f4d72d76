"""The files of an evaluation: all of them or none, and nothing in them is markup of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from nnunetv2_federated.experiment.evaluation_files import check_new, write_evaluation
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    Moments,
    MomentsOfLabels,
    SiteEvaluation,
)

HASH = "ab" * 32
LABELS = {"background": 0, "<b>lesion</b>": 1, "whole": [1, 2]}
MODEL = ModelDescription(
    *({"plans_name": "P"}, {"labels": LABELS}, "2d", "nnUNetTrainer", [0, 1], [HASH] * 2, 50),
    *(HASH, [0, 1], []),
)
PROPOSAL = EvaluationProposal([MODEL], "Tr", ["Dice"], 5, [0.25, 0.5, 0.75])


def told(one: Moments | None, whole: Moments | None) -> list[MomentsOfLabels]:
    labels = {"1": {"Dice": one}, "(1, 2)": {"Dice": whole}}
    return [MomentsOfLabels(labels, {"Dice": whole})]


OFFERS = [EvaluationOffer(site, 20, 20, "case", {}, "cpu") for site in ("<script>", "oslo")]
ANSWERS = [
    SiteEvaluation("<script>", 20, 20, "case", models, None, [])
    for models in [told(Moments(20, 20, 0.75, 0.04, [0.7, 0.75, 0.8]), Moments(20, 20, 0.5, 0.01))]
] + [SiteEvaluation("oslo", 20, 20, "case", told(None, Moments(20, 20, 0.7, 0.01)), None, [])]


def test_the_report_says_who_left_out_what_and_escapes_names(tmp_path: Path) -> None:
    written = write_evaluation(tmp_path / "out", PROPOSAL, ["model"], OFFERS, ANSWERS)

    assert written.summary["mean"] == {"1": {"Dice": 0.75}, "(1, 2)": {"Dice": pytest.approx(0.6)}}
    assert written.summary["foreground_mean"] == {"Dice": pytest.approx(0.675)}
    page, text = written.report.read_text(), written.report.with_suffix(".md").read_text()
    assert "<script>" not in page.replace(get_plotlyjs(), "").replace("<script>", "", 2)
    assert "model, oslo" in page
    assert "<b>lesion" not in page
    assert "&lt;b&gt;lesion&lt;/b&gt;" in page
    assert r"| oslo | model | \<b\>lesion\</b\> | Dice | too few |" in text
    row = r"| \<script\> | model | \<b\>lesion\</b\> | Dice | 0.7500 | 0.2000 | 20 | 20 |"
    assert row + " 0.7000 0.7500 0.8000 |" in text
    # over both sites: 0.6 with a standard error of sqrt(2 * 0.25 * 0.01 / 20)
    assert "| model | whole | Dice | 0.6000 | 0.5690 to 0.6310 |" in text
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["approval"] == PROPOSAL.approval()
    assert content["models"][0]["sha256"] == MODEL.sha256


def test_an_evaluation_that_cannot_be_written_whole_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnunetv2_federated.experiment.evaluation_files.write_pages", full)
    with pytest.raises(OSError, match="No space left"):
        write_evaluation(tmp_path / "out", PROPOSAL, ["model"], OFFERS, ANSWERS)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(SettingsError, match="cannot be written: give a folder"):
            check_new(folder)
    check_new(tmp_path / "new" / "deeper")
