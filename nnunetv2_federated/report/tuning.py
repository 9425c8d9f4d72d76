"""``report.html`` of a tuning, in one file which needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.report.html import templates
from nnunetv2_federated.report.tuning_data import TuningData
from nnunetv2_federated.report.tuning_figures import tuning_figures
from nnunetv2_federated.report.tuning_nested import Table, nested_line, nested_rows
from nnunetv2_federated.report.tuning_png import save_tuning_png


def write_tuning_report(data: TuningData, folder: Path, logarithms: Sequence[str]) -> Path:
    """Write ``report.html`` and ``tuning.png``; return the first.

    Parameters
    ----------
    data
        The study.
    folder
        Folder of the files.
    logarithms
        Parameters whose logarithm is drawn.
    """
    figures = {
        name: figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"figure-{name}",
            config={"responsive": True, "displaylogo": False},
        )
        for name, figure in tuning_figures(data, logarithms).items()
    }
    text = (
        templates()
        .get_template("tuning.html.j2")
        .render(
            data=data,
            verdict=verdict(data),
            best=_shown(data.best_settings),
            trials=trial_rows(data),
            budget=budget_rows(data),
            nested=None if data.nested is None else nested_rows(data.nested),
            settings=_shown(data.settings),
            figures=figures,
            plotly=get_plotlyjs(),
        )
    )
    path = folder / "report.html"
    write_atomically(path, text)
    save_tuning_png(data, folder / "tuning.png", logarithms)
    return path


def verdict(data: TuningData) -> str:
    """Say in one line what was found, with the noise beside the difference, and what is missing."""
    parts = [_found(data)]
    if data.nested is not None:
        parts.append(nested_line(data.nested))
    count = sum(trial.outcome == "paused" for trial in data.trials)
    if count:
        parts.append("1 trial is paused" if count == 1 else f"{count} trials are paused")
    return "; ".join(parts)


def _found(data: TuningData) -> str:
    best = data.best
    if best is None:
        return "no trial and the default have a score at the same rung yet"
    place = f"after {best.rung} of {data.rounds} rounds"
    if best.number == 0:
        return f"the default settings are the best that were found: {best.score:.4f} {place}"
    noise = "not known" if math.isnan(best.noise) else f"{best.noise:.4f}"
    line = (
        f"trial {best.number}: {best.score:.4f} {place}, default {best.default:.4f}: difference "
        f"{best.difference:+.4f}, noise {noise} (standard error over the validation batches)"
    )
    within = not math.isnan(best.noise) and abs(best.difference) < 2 * best.noise
    return f"{line}; within twice the noise, so nothing is shown" if within else line


def trial_rows(data: TuningData) -> Table:
    """Return the table of all trials, the best first."""
    ranked = sorted(data.trials, key=lambda t: (-t.reached, -(t.score or 0.0), t.number))
    header = ["trial", "score", "rung", "outcome", "rounds", "MB", "minutes", *data.parameters]
    rows = [
        [
            f"{trial.number} (default)" if trial.number == 0 else str(trial.number),
            "" if trial.score is None else f"{trial.score:.4f}",
            str(trial.reached),
            trial.outcome,
            f"{trial.rounds:.4g}",
            f"{trial.megabytes:.1f}",
            f"{trial.seconds / 60:.1f}",
            *(str(trial.values.get(name, "")) for name in data.parameters),
        ]
        for trial in ranked
    ]
    return header, rows


def budget_rows(data: TuningData) -> Table:
    """Return the table of what was spent."""
    nested = data.nested
    rounds, megabytes, seconds = (
        (0.0, 0.0, 0.0) if nested is None else (nested.rounds, nested.megabytes, nested.seconds)
    )
    megabytes += sum(trial.megabytes for trial in data.trials)
    seconds += sum(trial.seconds for trial in data.trials)
    spent = {
        "--budget-rounds": ("rounds", data.spent + rounds),
        "--budget-gb": ("GB", megabytes / 1000),
        "--budget-hours": ("hours of rounds", seconds / 3600),
    }
    rows = [
        [what, f"{value:.4g}", f"{data.limits[flag]:g}" if flag in data.limits else "none"]
        for flag, (what, value) in spent.items()
    ]
    if nested is not None:
        rows.append(["rounds of these on other folds", f"{rounds:.4g}", ""])
    share = data.spent / data.full if data.full else 0.0
    rows.append(["share of all trials trained to the end", f"{share:.1%}", ""])
    return ["of", "spent", "limit"], rows


def _shown(settings: object) -> list[tuple[str, str]]:
    pairs = dict(settings) if isinstance(settings, dict) else {}
    return [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in pairs.items()]
