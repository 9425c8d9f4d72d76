"""``nnUNetv2_federated_privacy``: its lines, its warnings, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnunetv2_federated.cli import privacy

PAGE = Path(__file__).parents[2] / "docs" / "differential-privacy.md"
GUANGZHOU = ["--patients", "168", "--rounds", "20", "--iterations", "10", "--batch", "24"]


def calculate(*flags: str) -> int:
    try:
        privacy.main(flags)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_noise_has_an_epsilon_by_both_relations(capsys: pytest.CaptureFixture[str]) -> None:
    assert calculate(*GUANGZHOU, "--noise", "2") == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[:3] == [
        "iterations: 200 (20 rounds of 1 x 10); each draws 24 of 168 patients on average, "
        "each patient with probability 0.143",
        "delta: 0.00357 (1 / patients is 0.00595)",
        "noise multiplier: 2 times the clip",
    ]
    assert lines[3].startswith("epsilon: 3.05 if a patient is added or removed, which is the pro")
    assert lines[4].startswith("computed by privacy loss distributions of dp-accounting 0.6")
    assert len(lines) == 5
    assert shown.err == ""


def test_an_epsilon_has_a_noise_and_the_noise_a_length(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--patients", "60", "--rounds", "20", "--local-epochs", "2", "--iterations", "5"]
    assert calculate(*flags, "--batch", "15", "--epsilon", "8", "--parameters", "740") == 0
    shown = capsys.readouterr()
    assert "iterations: 200 (20 rounds of 2 x 5)" in shown.out
    assert "noise multiplier: 1.56" in shown.out
    assert ", for epsilon 8\n" in shown.out
    # 1.56 * sqrt(740) / 15 = 2.83
    assert "noise of an iteration: 2.8" in shown.out
    assert "(740 parameters); with 7.2 a small network was seen to learn\n" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("norm", "says"),
    [
        (0.5, "with 1.15 a model was seen to adapt well"),
        (1.16, "with 7.2 a small network was seen to learn"),
        (7.3, "7.2 is the most with which a network was seen to learn"),
    ],
)
def test_a_length_of_noise_is_compared_with_what_was_measured(norm: float, says: str) -> None:
    assert privacy.judge(norm) == says


def test_what_cannot_be_meant_so_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--patients", "60", "--batch", "90", "--rounds", "1", "--noise", "1"]
    assert calculate(*flags, "--parameters", "30000000") == 0
    shown = capsys.readouterr()
    assert "each draws 60 of 60 patients on average, each patient with probability 1\n" in shown.out
    capped, protects, hopeless = shown.err.splitlines()
    assert capped.startswith("warning: --batch 90 is more than the 60 patients: ")
    assert protects.startswith("warning: epsilon 160.")  # about 250 / 2 + sqrt(250) * 2.3
    assert "protects nobody" in protects
    # the root of 30,000,000, divided by the 60 patients there are
    assert hopeless.startswith("warning: the noise is 91.3 times as long as the mean gradient can")


def test_noise_that_hides_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert calculate("--patients", "60", "--noise", "1e-9") == 0
    shown = capsys.readouterr()
    assert "epsilon: infinite if a patient is added" in shown.out
    assert "warning: epsilon infinite protects nobody" in shown.err


def test_a_curve_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for noise, rounds in (("1.5", "3"), ("1e-9", "1")):
        picture = tmp_path / f"{noise}.png"
        flags = ["--patients", "168", "--iterations", "10", "--noise", noise, "--rounds", rounds]
        assert calculate(*flags, "-o", str(picture)) == 0
        assert f"wrote {picture}\n" in capsys.readouterr().out
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.5.png", "1e-9.png"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--patients is missing: see --help."),
        (["--patients", "60"], "--epsilon or --noise is missing: give the epsilon to find"),
        (["--patients", "1", "--noise", "1"], "--patients 1: must be a whole number of at least 2"),
        (["--patients", "60", "--noise", "-1"], "--noise -1.0: must be above 0 and at most 1e6."),
        (["--patients", "60", "--noise", "nan"], "--noise nan: must be above 0 and at most 1e6."),
        (["--patients", "60", "--epsilon", "0"], "--epsilon 0.0: must be above 0 and at most 500."),
        (["--patients", "60", "--epsilon", "inf"], "--epsilon inf: must be above 0 and at most"),
        (
            ["--patients", "60", "--epsilon", "1", "--noise", "2"],
            "--epsilon 1 --noise 2: each follows from the other; give one of them.",
        ),
        (
            ["--patients", "60", "--noise", "1", "--delta", "0.02"],
            "delta 0.02: must be below 1 / 60 patients (0.0167), and at least 1e-08; usual is "
            "0.0111.",
        ),
        (["--patients", "60", "--noise", "1", "--delta", "-1"], "--delta -1.0: must be above 0"),
        (["--patients", "60", "--noise", "1", "--batch", "0"], "--batch 0: must be a whole number"),
        (["--patients", "60", "--noise", "1", "--rounds", "-2"], "--rounds -2: must be a whole n"),
        (
            ["--patients", "60", "--noise", "1", "-o", "/nowhere/curve.png"],
            "-o /nowhere/curve.png: there is no folder /nowhere.",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calculate(*flags) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {says}")
    assert shown.err.count("\n") == 1


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(
        r"^```text\n\$ nnUNetv2_federated_privacy (.*?)\n(.*?)^```", PAGE.read_text(), re.M | re.S
    )
    assert len(shown) == 3
    for flags, expected in shown:
        assert calculate(*flags.split()) == 0
        printed = capsys.readouterr()
        assert printed.out + printed.err == expected
