"""``report.md``: the tables of a comparison as text, with links to its PNGs."""

from __future__ import annotations

import json
from pathlib import Path

from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.update_bound import ACCEPTED
from nnunetv2_federated.report.comparison_data import ComparisonData, promises, what_left
from nnunetv2_federated.report.matplotlib_figures import save_pictures
from nnunetv2_federated.report.privacy_attacks import ATTACKED, membership_rows
from nnunetv2_federated.report.privacy_terms import PROMISED, privacy_rows
from nnunetv2_federated.report.statistics import ALL_SITES, Difference
from nnunetv2_federated.report.text import markdown, markdown_table
from nnunetv2_federated.report.verdict import verdict


def write_markdown(data: ComparisonData, folder: Path) -> Path:
    """Write ``report.md`` and its PNGs; return the first."""
    pictures = save_pictures(data, folder)
    parts = [
        f"# {markdown(data.title)}: local, federated, centralised",
        "\n".join(f"- {markdown(line)}" for line in verdict(data.differences)),
        "Mean ± standard deviation over seeds and folds. " + SMALL_PRINT,
        "## All sites",
        markdown_table(*headline_rows(data)),
        f"## {markdown(data.headline)} at each site",
        markdown_table(*matrix_rows(data)),
        "## Paired differences",
        markdown_table(*difference_rows(data)),
        "## Updates that were refused or clipped",
        markdown_table(*held_back_rows(data)),
        "## What left each site",
        markdown_table(*sent_rows(data)),
        *(
            ["## Privacy", markdown_table(*privacy_rows(promised)), PROMISED]
            if (promised := promises(data.histories))
            else []
        ),
        *(
            ["## Membership inference", markdown_table(*membership_rows(data.attacks)), ATTACKED]
            if data.attacks
            else []
        ),
        "## Settings",
        "```json\n" + json.dumps(data.settings, indent=1) + "\n```",
        "## Versions",
        ", ".join(markdown(f"{k} {v}") for k, v in versions(data).items()) or "not known",
        "## Pictures",
        *(f"![{name}]({name})" for name in pictures),
    ]
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


SMALL_PRINT = (
    "Differences are taken on the same cases, with 95 % bootstrap intervals over cases: they show "
    "how test cases vary, not trainings."
)


def headline_rows(data: ComparisonData) -> tuple[list[str], list[list[str]]]:
    """Return header and rows with every metric of every arm on all sites, and why an arm failed."""
    header = ["model", "runs", *data.metrics, "failed"]
    rows = []
    for arm in data.arms:
        values = [data.cell(arm, ALL_SITES, metric) for metric in data.metrics]
        failures = data.failures_of(arm)
        why = f"{len(failures)}: {failures[0]}" if failures else ""
        shown = ["-" if value is None else str(value) for value in values]
        rows.append([arm, str(data.runs.get(arm, 0)), *shown, why])
    return header, rows


def matrix_rows(data: ComparisonData) -> tuple[list[str], list[list[str]]]:
    """Return header and rows with the headline metric of every arm at every site."""
    names = [f"{g} (external)" if g in data.external else g for g in data.groups]
    header = [
        "model",
        *(f"{n}, {data.tested[g]} cases" for n, g in zip(names, data.groups, strict=True)),
    ]
    rows = []
    for arm in data.arms:
        values = [data.cell(arm, group, data.headline) for group in data.groups]
        rows.append([arm, *("failed" if value is None else str(value) for value in values)])
    return header, rows


def difference_rows(data: ComparisonData) -> tuple[list[str], list[list[str]]]:
    """Return header and rows with the paired differences of the headline metric."""
    header = [
        "model",
        "minus",
        "on",
        "cases",
        f"difference of {data.headline}",
        "95 % interval",
    ]
    return header, [
        [d.first, d.second, d.group, str(d.cases), f"{d.value:+.4f}", interval(d)]
        for d in data.differences
    ]


def interval(difference: Difference) -> str:
    """Return the interval as text, or that there are too few cases for one."""
    if difference.low is None or difference.high is None:
        return "too few cases"
    return f"{difference.low:+.4f} to {difference.high:+.4f}"


def held_back_rows(data: ComparisonData) -> tuple[list[str], list[list[str]]]:
    """Return header and rows with the updates that ``--max-update-norm`` clipped or refused."""
    header = ["federation", "seed", "fold", "site", "outcome", "rounds", "largest norm"]
    norms: dict[tuple[str, ...], list[float]] = {}
    for (arm, seed, fold), history in data.histories.items():
        for record in history.rounds:
            for site, update in record.updates.items():
                if update.outcome != ACCEPTED:
                    key = (arm, str(seed), str(fold), site, update.outcome)
                    norms.setdefault(key, []).append(update.norm)
    return header, [[*key, str(len(ns)), f"{max(ns):.3g}"] for key, ns in norms.items()]


def sent_rows(data: ComparisonData) -> tuple[list[str], list[list[str]]]:
    """Return header and rows with what each site sent in the first run of each federation."""
    header = ["federation", "site", "training cases", "rounds answered", "MiB sent", "versions"]
    return header, [
        [s.arm, s.site, str(s.training_cases), str(s.rounds), f"{s.mebibytes:.1f}", s.versions]
        for s in what_left(data.histories)
    ]


def versions(data: ComparisonData) -> dict[str, str]:
    """Return the versions of the server's packages in the first run."""
    for history in data.histories.values():
        return dict(history.versions)
    return {}
