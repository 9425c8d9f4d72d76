"""Nothing of a release names a case: what is found, and what is no name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from nnunetv2_federated.experiment.release_results import without_remainder
from nnunetv2_federated.federation.identifying_names import IdentifyingNames
from nnunetv2_federated.federation.model_card import Scores
from nnunetv2_federated.federation.strings_inside import strings_inside

HIDDEN = IdentifyingNames(
    names=["case_01", "1", "case", "heart", "Jörg Müller", "P01", "123456", "L5_left", "1.2.840.9"],
    paths=["/data/hospital", "/root/"],
    harmless=["L5_left"],
)
CASE, PATH = "the name of a case or a patient", "a path of this machine"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("case_01", CASE),
        ("['case_01', 2]", CASE),
        ("validation/case_01_0000.nii.gz", CASE),
        ("of P01.", CASE),
        ("seen by Jörg Müller yesterday", CASE),
        ("123456", CASE),
        ("1.2.840.9", CASE),
        # of names that are words or small numbers, only files
        ("1.nii.gz", CASE),
        ("case_0000", CASE),
        ("heart.png", CASE),
        ("L5_left.b2nd", CASE),
        ("1", None),
        ("the case of a heart, 1 of 2", None),
        ("L5_left", None),
        # other names, or parts of longer ones
        ("case_010", None),
        ("my_case_01", None),
        ("P011", None),
        ("1.2.840.99", None),
        ("case_02.nii.gz", None),
        ("/data/hospital/imagesTr", PATH),
        ("File '/data/hospital'", PATH),
        ("/root", PATH),
        ("/data/hospitals", None),
        ("/rooted", None),
    ],
)
def test_whole_names_are_found_and_words_are_not(text: str, found: str | None) -> None:
    assert HIDDEN.stands_in(text) == found


def test_texts_are_found_in_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"jörg": [{"b": "case_\u0131"}]}))
    torch.save({"weights": torch.zeros(4), "cases": ["case_01"]}, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.md", "of Jörg Müller")
    (tmp_path / "d.onnx").write_bytes(b"\x00\x08case_01\x01" + bytes(2**24 - 6) + b"case_02\xff")

    assert {"jörg", "b", "case_\u0131"} <= {*strings_inside(tmp_path / "a.json")}
    assert {"case_01", "weights"} <= {*strings_inside(tmp_path / "b.pth")}
    assert [*strings_inside(tmp_path / "c.zip")] == ["inner.md", "of Jörg Müller"]
    assert [*strings_inside(tmp_path / "d.onnx")] == ["case_01", "case_02"]


def test_no_code_of_a_pickle_runs(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(Vtouch pwned\ntR.")
    assert "touch pwned" in [*strings_inside(tmp_path / "evil.pkl")]
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


@pytest.mark.parametrize(
    ("cases", "shown", "left"),
    [
        (7, {"a": 3, "b": 4}, {"a", "b"}),
        (10, {"a": 3, "b": 4}, {"a", "b"}),  # three elsewhere: their mean may be worked out
        (9, {"a": 3, "b": 4}, {"b"}),  # two: a's three cases hide them
        (4, {"a": 3}, set()),
    ],
)
def test_no_few_cases_are_what_others_leave_of_the_mean(
    cases: int, shown: dict[str, int], left: set[str]
) -> None:
    sites = {name: Scores(cases=count, metrics={"Dice": 0.5}) for name, count in shown.items()}
    assert without_remainder(sites, cases).keys() == left
