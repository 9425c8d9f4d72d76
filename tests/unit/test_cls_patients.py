"""Patients of a user's table, or of RSNA's mapping."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from conversions import (
    check_folds,
    convert,
    refuse,
    save,
    table,
    write_rows,
)


def write_mapping(path: Path, images: Sequence[Sequence[str]]) -> Path:
    """Images of NIH's patients 1, 2, ...: two of each, one sick and one not."""
    rows = [
        {"subset_img_id": image, "img_id": f"{patient:08d}_{i:03d}.png", "orig_labels": []}
        for patient, pair in enumerate(images, 1)
        for i, image in enumerate(pair)
    ]
    path.write_text(json.dumps(rows))
    return path


def test_rsna_with_patients_of_nih(
    raw: Path, rsna: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert("rsna", rsna, 7, "--name", "Without")
    warning = capsys.readouterr().err
    assert re.search(r"patients of 12 of 12 training images are unknown \(first n0.png\)", warning)
    assert "RSNA publishes pneumonia-challenge-dataset-mappings_2018.json" in warning
    save(rsna / "Test/t0.png")
    pairs = [(f"n{i}", f"p{i}") for i in range(5)] + [("n5", "p5", "t0")]
    mapping = write_mapping(rsna / "m.json", pairs)
    convert("rsna", rsna, 8, "--patients", mapping)
    folder = raw / "Dataset008_RSNAPneumonia"
    patients = {row["case"]: row["patient"] for row in table(folder)}
    assert patients["n2"] == patients["p2"] == "nih_00000003"
    check_folds(folder)
    assert capsys.readouterr().err == (
        "warning: 1 patients have images in training and in the test set (first nih_00000006): "
        "the test set is not independent.\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "m.json is no list of objects with subset_img_id and img_id"),
        ('[{"subset_img_id": "p0"}]', "m.json is no list of objects .*KeyError 'img_id'"),
        ('{"p0": "00000001_000.png"}', "m.json is no list of objects"),
        ('[{"subset_img_id": "p0", "img_id": "x.png"}]', "p0 has another img_id"),
        ('[{"subset_img_id": "p0", "img_id": "00000001_000.png"}]', r"Images/n0.png \(11 of 12"),
    ],
)
def test_bad_mappings_are_refused(
    raw: Path, rsna: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (rsna / "m.json").write_text(content)
    assert re.search(message, refuse(capsys, "rsna", rsna, 8, "--patients", rsna / "m.json"))
    assert not raw.exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "t.csv cannot be read as a CSV table"),
        ([["file", "who"]], "t.csv lacks the column patient: it has file, who"),
        ([["file", "patient"], ["cat/0.png", "a"]], "t.csv has no row for cat/1.png"),
        ([["file", "patient"], ["0.png", "a"]], "t.csv has no row for cat/0.png"),  # or dog/0.png?
        ([["file", "patient"], ["cat/0.png", ""]], "cat/0.png has no patient, or several"),
        (
            [["file", "patient"], ["cat/0.png", "a"], ["cat/0.png", "b"]],
            "cat/0.png has no patient, or several",
        ),
    ],
)
def test_bad_patient_tables_are_refused(
    raw: Path,
    classes: Path,
    capsys: pytest.CaptureFixture[str],
    rows: Sequence[Sequence[str]] | None,
    message: str,
) -> None:
    path = classes.parent / "t.csv"
    if rows:
        write_rows(path, rows)
    assert message in refuse(capsys, "folder", classes, 9, "--patients", path)
    assert not raw.exists()
