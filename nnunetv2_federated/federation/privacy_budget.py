"""What the rows of a privacy ledger cost the patient who paid most, and whether more may be asked.

An accountant is slow, and most patients paid for the same rows: those of one fold, or of all. So
it is asked once for each set of rows, and not for a set that another one contains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.mechanism import Mechanism, merge
from nnunetv2_federated.federation.privacy_rows import Row

_LARGEST = 10**6

EpsilonOf = Callable[[Sequence[Mechanism], float], float]
"""An accountant: takes mechanisms and delta, returns epsilon."""


def rows_by_patient(rows: Sequence[Row]) -> dict[frozenset[str], tuple[Row, ...]]:
    """Group patients by the rows that they are in.

    Returns
    -------
    dict
        Rows, in their order, by the patients that are in exactly these.
    """
    sets = {row.patients for row in rows}
    groups: dict[frozenset[frozenset[str]], set[str]] = {}
    for patient in frozenset[str]().union(*sets):
        groups.setdefault(frozenset(s for s in sets if patient in s), set()).add(patient)
    return {
        frozenset(patients): tuple(row for row in rows if row.patients in member)
        for member, patients in groups.items()
    }


def largest(rows: Sequence[Row], delta: float, epsilon_of: EpsilonOf) -> float:
    """Return the epsilon of the patient who paid most; 0 if nobody paid.

    Parameters
    ----------
    rows
        Rows of a ledger.
    delta
        Delta of the site.
    epsilon_of
        Accountant, such as :func:`~nnunetv2_federated.nnunet.privacy.accounting.epsilon_of`.
    """
    costs = {merge(row.mechanism for row in own) for own in rows_by_patient(rows).values()}
    most = [c for c in costs if not any(c != other and _within(c, other) for other in costs)]
    return max((epsilon_of(mechanisms, delta) for mechanisms in most), default=0.0)


def check_budget(
    rows: Sequence[Row], planned: Row, delta: float, max_epsilon: float, epsilon_of: EpsilonOf
) -> float:
    """Return what the patients of a planned row will have paid with it, if that is allowed.

    Parameters
    ----------
    rows
        Rows of the ledger so far. Those without a patient of the planned row do not count.
    planned
        What is asked for.
    delta, epsilon_of
        As of :func:`largest`.
    max_epsilon
        Largest epsilon that the site allows for a patient.

    Raises
    ------
    SiteError
        If the budget does not allow it.
    """
    own = _restrict(rows, planned.patients)
    reached = largest([*own, planned], delta, epsilon_of)
    if reached <= max_epsilon:
        return reached
    spent = largest(own, delta, epsilon_of)
    left = _hundredths(max(0, math.floor(round((max_epsilon - spent) * 100, 6))))
    raise SiteError(
        f"privacy budget spent: {show_epsilon(spent)} of {show_epsilon(max_epsilon)} (epsilon at "
        f"delta {delta:.2g}, of the patient who paid most); {planned.mechanism.steps} more "
        f"iterations would make it {show_epsilon(reached)}, {left} is left. Fewer rounds or more "
        "noise cost less; the site's engineer sets max_epsilon in site.toml"
    )


def _restrict(rows: Sequence[Row], patients: Collection[str]) -> list[Row]:
    """Return rows with these patients only, without those that have none of them."""
    wanted = frozenset(patients)
    kept = {row.patients: row.patients & wanted for row in rows}
    return [replace(row, patients=kept[row.patients]) for row in rows if kept[row.patients]]


def _within(cost: Sequence[Mechanism], other: Sequence[Mechanism]) -> bool:
    """Whether ``other`` has at least the steps of ``cost``, of each kind."""
    steps = {(one.probability, one.noise_multiplier): one.steps for one in other}
    return all(one.steps <= steps.get((one.probability, one.noise_multiplier), 0) for one in cost)


def show_epsilon(epsilon: float) -> str:
    """Return an epsilon as text, rounded up to a hundredth: it is never shown too small."""
    if epsilon == math.inf:
        return "infinite"
    if epsilon > _LARGEST:
        return f"more than {_LARGEST}"
    return _hundredths(math.ceil(round(epsilon * 100, 6)))


def _hundredths(number: int) -> str:
    """Show at least one digit behind the point, and at most two."""
    return f"{number / 100:.2f}".removesuffix("0")
