"""The answer of a comparison in words: which site gains, which loses, and what cannot be told."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_federated.report.statistics import ALL_SITES, Difference

UNKNOWN = (
    "Which site gains by taking part is not said: that needs a federation, models of single sites, "
    "and test cases whose site is known."
)
CAVEAT = (
    "The intervals show how test cases vary, not how trainings do, and of many intervals some "
    "leave 0 out by chance, about one in twenty."
)


def verdict(differences: Sequence[Difference]) -> list[str]:
    """Say in sentences who gains and who loses at home, compared with training alone.

    Parameters
    ----------
    differences
        Paired differences of the comparison.

    Returns
    -------
    list of str
        A sentence that counts for each model that sites could take in place of their own, one for
        each site, and what the intervals mean.
    """
    at_home: dict[str, list[Difference]] = {}
    for difference in differences:
        kind, _, site = difference.second.partition("/")
        if kind == "local" and difference.group == site != ALL_SITES and difference.cases:
            at_home.setdefault(_taken(difference.first), []).append(difference)
    lines = [line for model, found in at_home.items() for line in _of_model(model, found)]
    return [*lines, CAVEAT] if lines else [UNKNOWN]


def _taken(model: str) -> str:
    """Return what a site would take: the federation, or its own model that is made of it."""
    kind, _, rest = model.partition("/")
    return model if kind != "personal" else f"personal models of federated/{rest.split('/')[0]}"


def _of_model(model: str, found: Sequence[Difference]) -> list[str]:
    gain = [d for d in found if d.low is not None and d.low > 0]
    lose = [d for d in found if d.high is not None and d.high < 0]
    rest = len(found) - len(gain) - len(lose)
    sites = f"{len(found)} site" + "s" * (len(found) != 1)
    start = (
        f"{model}, at home and compared with training alone, of {sites}: {len(gain)} gain"
        f"{'s' * (len(gain) == 1)}, {len(lose)} lose{'s' * (len(lose) == 1)}, and for {rest} no "
        "difference can be seen."
    )
    return [start, *map(_of_site, found)]


def _of_site(difference: Difference) -> str:
    """Say what happens at one site; an interval around 0 says neither gain nor equality."""
    what = f"{difference.metric} {difference.value:+.4f}"
    cases = f"{difference.cases} case{'s' * (difference.cases != 1)}"
    low, high = difference.low, difference.high
    if low is None or high is None:
        unsure = f"{what} on {cases}, without an interval"
        return f"{difference.group}: no difference can be seen: {unsure}."
    shown = f"{what} (95 % interval {low:+.4f} to {high:+.4f}, {cases})"
    if low > 0:
        return f"{difference.group} gains: {shown}."
    if high < 0:
        return f"{difference.group} loses: {shown}."
    return f"{difference.group}: no difference can be seen: {shown}."
