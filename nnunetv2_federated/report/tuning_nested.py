"""What a tuning's choice loses on folds by which nothing was chosen, in words and as a table."""

from __future__ import annotations

import math

from nnunetv2_federated.federation.optimism import FoldScore
from nnunetv2_federated.report.tuning_data import ReportedNested

Table = tuple[list[str], list[list[str]]]


def nested_line(nested: ReportedNested) -> str:
    """Say in a part of a line what the other folds show."""
    optimism = nested.optimism
    if optimism is None:
        return f"{_folds(nested.folds)}: not trained yet"
    done = tuple(one.fold for one in optimism.others)
    means, where = optimism.elsewhere, f"{_folds(done)}, which chose nothing"
    if nested.default_alone:
        line = f"on {where}: {means.default:.4f}, optimism {optimism.default:+.4f}"
    else:
        line = (
            f"on {where}: {means.found:.4f}, default {_number(means.default)}: difference "
            f"{_signed(means.difference)}, noise {_number(means.noise)}; optimism "
            f"{optimism.found:+.4f}, of the default {_signed(optimism.default)}"
        )
    if nested.diverged:
        line += f"; {len(nested.diverged)} of these diverged, which counts 0"
    missing = tuple(fold for fold in nested.folds if fold not in done)
    return f"{line}; {_folds(missing)}: not trained yet" if missing else line


def nested_rows(nested: ReportedNested) -> Table:
    """Return the table of all folds; it has no rows before one was trained."""
    optimism = nested.optimism
    header = ["", "default"] if nested.default_alone else ["", "found", "default", "difference"]
    if not nested.default_alone:
        header.append("noise")
    if optimism is None:
        return header, []
    rows = [
        [f"fold {optimism.chosen.fold}, which chose", *_cells(optimism.chosen, nested)],
        *([f"fold {one.fold}", *_cells(one, nested)] for one in optimism.others),
        ["mean of the others", *_cells(optimism.elsewhere, nested)],
    ]
    lost = (optimism.found, optimism.default, optimism.difference)
    own = lost[1:2] if nested.default_alone else lost
    rows.append(["optimism", *map(_signed, own), *([] if nested.default_alone else [""])])
    return header, rows


def _cells(score: FoldScore, nested: ReportedNested) -> list[str]:
    if nested.default_alone:
        return [_number(score.default)]
    return [
        _number(score.found),
        _number(score.default),
        _signed(score.difference),
        _number(score.noise),
    ]


def _folds(folds: tuple[int | str, ...]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def _number(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.4f}"


def _signed(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:+.4f}"
