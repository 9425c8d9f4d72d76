"""The report of a tuning, from plain numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from nnunetv2_federated.federation.optimism import FoldScore, Optimism
from nnunetv2_federated.report.tuning import (
    budget_rows,
    trial_rows,
    verdict,
    write_tuning_report,
)
from nnunetv2_federated.report.tuning_data import (
    ReportedBest,
    ReportedNested,
    ReportedTrial,
    TuningData,
    best_so_far,
    parallel_axes,
)
from nnunetv2_federated.report.tuning_figures import tuning_figures
from nnunetv2_federated.report.tuning_nested import nested_line, nested_rows


def a_trial(
    number: int, scores: dict[int, float], state: str, **values: float | str
) -> ReportedTrial:
    return ReportedTrial(
        number=number,
        bracket=0,
        values=values,
        scores=scores,
        state=state,
        diverged="its loss is nan" if number == 3 else None,
        rounds=float(max(scores, default=0)),
        megabytes=10.0 * max(scores, default=0),
        seconds=60.0,
    )


TRIALS = [
    a_trial(0, {3: 0.5, 9: 0.7}, "complete", initial_lr=0.01),
    a_trial(1, {3: 0.6, 9: 0.8}, "complete", initial_lr=0.1, strategy="fedprox"),
    a_trial(2, {3: 0.4}, "stopped", initial_lr=0.001, strategy="<b>fedavg</b>"),
    a_trial(3, {3: 0.0}, "stopped", initial_lr=0.05),
    a_trial(4, {}, "running", initial_lr=0.02),
]
BEST = ReportedBest(1, 9, score=0.8, default=0.7, difference=0.1, noise=0.02)
DATA = TuningData(
    title="Dataset001_<i>A</i>",
    rounds=9,
    trials=TRIALS,
    best=BEST,
    best_settings={"initial_lr": 0.1},
    importances={"initial_lr": 0.9, "strategy": 0.1},
    limits={"--budget-rounds": 30.0},
    stopped="--budget-rounds 30: 24 are planned",
)


def test_the_page_needs_no_network_and_no_text_is_a_tag(tmp_path: Path) -> None:
    page = write_tuning_report(DATA, tmp_path, ["initial_lr"]).read_text()
    assert set(tuning_figures(DATA, [])) == {
        "history",
        "curves",
        "parallel",
        "importances",
        "budget",
    }
    for name in ("history", "curves", "parallel", "importances", "budget"):
        assert f'id="figure-{name}"' in page
    assert "<i>A</i>" not in page
    assert "<b>fedavg</b>" not in page
    assert '<script src="http' not in page
    assert "--budget-rounds 30: 24 are planned" in page
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_without_a_score_has_a_report_too(tmp_path: Path) -> None:
    nothing = replace(DATA, trials=TRIALS[4:], best=None, best_settings={}, importances={})
    page = write_tuning_report(nothing, tmp_path, []).read_text()
    assert "no trial and the default have a score at the same rung yet" in page
    assert "There are too few trials to say which parameter matters" in page


@pytest.mark.parametrize(
    ("best", "line"),
    [
        (BEST, "0.8000 after 9 of 9 rounds, default 0.7000: difference +0.1000, noise 0.0200"),
        (replace(BEST, noise=0.06), "within twice the noise, so nothing is shown"),
        (replace(BEST, noise=math.nan), "noise not known"),
        (replace(BEST, number=0), "the default settings are the best that were found: 0.8000"),
    ],
)  # fmt: skip
def test_the_noise_stands_beside_the_difference(best: ReportedBest, line: str) -> None:
    assert line in verdict(replace(DATA, best=best))


CHOSEN = FoldScore(0, found=0.8, default=0.7, noise=0.02)
OTHERS = (FoldScore(1, 0.7, 0.68, 0.03), FoldScore(2, 0.74, 0.7, 0.04))
NESTED = ReportedNested(
    folds=(1, 2),
    optimism=Optimism(CHOSEN, OTHERS),
    default_alone=False,
    diverged=(),
    rounds=36.0,
    megabytes=360.0,
    seconds=120.0,
)


def test_what_other_folds_show_stands_in_verdict_table_and_page(tmp_path: Path) -> None:
    whole = replace(DATA, trials=TRIALS[:4], nested=NESTED)
    assert verdict(whole).endswith(
        "; on folds 1, 2, which chose nothing: 0.7200, default 0.6900: difference +0.0300, noise "
        "0.0250; optimism +0.0800, of the default +0.0100"
    )
    header, rows = nested_rows(NESTED)
    assert header == ["", "found", "default", "difference", "noise"]
    assert rows == [
        ["fold 0, which chose", "0.8000", "0.7000", "+0.1000", "0.0200"],
        ["fold 1", "0.7000", "0.6800", "+0.0200", "0.0300"],
        ["fold 2", "0.7400", "0.7000", "+0.0400", "0.0400"],
        ["mean of the others", "0.7200", "0.6900", "+0.0300", "0.0250"],
        ["optimism", "+0.0800", "+0.0100", "+0.0700", ""],
    ]
    _, spent = budget_rows(whole)
    assert spent[0] == ["rounds", "60", "30"]
    assert spent[3] == ["rounds of these on other folds", "36", ""]
    page = write_tuning_report(whole, tmp_path, []).read_text()
    assert "<td>mean of the others</td>" in page
    assert "On folds that chose nothing" not in write_tuning_report(DATA, tmp_path, []).read_text()


def test_what_other_folds_do_not_show_yet_is_said() -> None:
    nothing = replace(NESTED, optimism=None)
    assert nested_line(nothing) == "folds 1, 2: not trained yet"
    assert nested_rows(nothing)[1] == []
    one = replace(NESTED, optimism=Optimism(CHOSEN, OTHERS[:1]))
    assert nested_line(one).startswith("on fold 1, which chose nothing: 0.7000")
    assert nested_line(one).endswith("; fold 2: not trained yet")
    diverged = (replace(OTHERS[0], found=0.0, noise=math.nan),)
    bad = replace(
        NESTED, folds=(1,), optimism=Optimism(CHOSEN, diverged), diverged=("fold 1: nan",)
    )
    assert "difference -0.6800, noise not known; optimism +0.8000" in nested_line(bad)
    assert nested_line(bad).endswith("1 of these diverged, which counts 0")


def test_a_default_that_is_the_best_stands_alone() -> None:
    same = [replace(one, found=one.default, noise=0.0) for one in (CHOSEN, *OTHERS)]
    alone = replace(NESTED, default_alone=True, optimism=Optimism(same[0], tuple(same[1:])))
    assert nested_line(alone) == "on folds 1, 2, which chose nothing: 0.6900, optimism +0.0100"
    header, rows = nested_rows(alone)
    assert header == ["", "default"]
    assert rows[0] == ["fold 0, which chose", "0.7000"]
    assert rows[-1] == ["optimism", "+0.0100"]


def test_paused_trials_are_counted() -> None:
    assert verdict(DATA).endswith("; 1 trial is paused")
    two = [*TRIALS, a_trial(5, {3: 0.5}, "running", initial_lr=0.03)]
    assert verdict(replace(DATA, trials=two)).endswith("; 2 trials are paused")
    assert "paused" not in verdict(replace(DATA, trials=TRIALS[:4]))
    unknown = replace(DATA, best=None, best_settings={})
    assert verdict(unknown).endswith("at the same rung yet; 1 trial is paused")


def test_tables() -> None:
    header, rows = trial_rows(DATA)
    assert header[-2:] == ["initial_lr", "strategy"]
    assert [row[0] for row in rows] == ["1", "0 (default)", "2", "3", "4"]
    assert [row[3] for row in rows] == ["complete", "complete", "stopped", "diverged", "paused"]
    _, spent = budget_rows(DATA)
    assert spent == [
        ["rounds", "24", "30"],
        ["GB", "0.24", "none"],
        ["hours of rounds", "0.08333", "none"],
        ["share of all trials trained to the end", "53.3%", ""],
    ]


def test_what_is_drawn() -> None:
    assert best_so_far(DATA) == [(0, 0.7), (1, 0.8)]
    rate, strategy, score = parallel_axes(DATA, ["initial_lr"])
    assert rate.places[0] == pytest.approx(0.5)
    assert (rate.places[2], rate.places[1]) == (0.0, 1.0)
    assert (rate.low, rate.high) == ("0.001", "0.1")
    assert strategy.words == {0.0: "<b>fedavg</b>", 1.0: "fedprox"}
    assert set(strategy.places) == {1, 2}
    assert 4 not in score.places
    (plain, *_) = parallel_axes(DATA)
    assert plain.places[0] == pytest.approx(0.009 / 0.099)
