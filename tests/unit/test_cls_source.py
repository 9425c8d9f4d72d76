"""Names of cases."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversions import (
    COLUMNS,
    refuse,
    rsna_rows,
    write_rows,
)

from nnunetv2_cls.conversion.source import case_name


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("cat", "a b.c"), "cat_a_b_c"),
        (("IM-0115-0001",), "IM-0115-0001"),
        (("x_0001",), "x-0001"),
        (("x", "0000"), "x-0000"),
        (("x_00001",), "x_00001"),
        (("../x",), "x"),
        (("Lunge ä",), "Lunge_ä"),
    ],
)
def test_case_names(parts: tuple[str, ...], name: str) -> None:
    assert case_name(*parts) == name


def test_a_case_needs_a_name(raw: Path, rsna: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["+", *row[1:]] if row[0] == "p5" else row for row in rsna_rows()]
    write_rows(rsna / "stage2_train_metadata.csv", [COLUMNS, *rows])
    (rsna / "Training/Images/p5.png").rename(rsna / "Training/Images/+.png")
    assert "would be case ''" in refuse(capsys, "rsna", rsna, 8)
    assert not raw.exists()
