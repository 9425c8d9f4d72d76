"""The cases that a comparison has tested, as they are kept in ``tests.json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.tested_case import (
    TestedCase,
    read_tested_cases,
    write_tested_cases,
)

RECORD = {
    "case": "case_1",
    "class": 1,
    "stratum": 1,
    "probabilities": [0.25, 0.75],
    "score": 0.75,
    "shown": "columns 0.75",
    "truth": "columns",
    "site": "bern",
    "subset": "Ts",
    "patient": None,
}


def test_a_tested_case_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "tests.json"
    write_tested_cases(path, [TestedCase.of(RECORD)])
    assert json.loads(path.read_text()) == [RECORD]
    (tested,) = read_tested_cases(path)
    assert tested == TestedCase(
        "case_1", "bern", "Ts", 0.75, "columns 0.75", None, 1, "columns", None, RECORD
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"score": "0.75"}, "score: "),
        ({"score": None, "site": 3}, "site: "),
        ({"subset": "Va"}, "subset: "),
        ({"patient": 17}, "patient: "),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    change: dict[str, object], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "tests.json"
    path.write_text(json.dumps([RECORD | change]))
    with pytest.raises(CheckpointError, match=rf"{problem}.*delete it, and the model is tested"):
        read_tested_cases(path)


@pytest.mark.parametrize("content", ["", "[{", "3", "[3]", '["a"]', '[{"case": "a"}]'])
def test_a_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tests.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"tests\.json cannot be read \("):
        read_tested_cases(path)
