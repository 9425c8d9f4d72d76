"""What a tuning may cost, what it has cost, and whether the next piece of it still fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.settings import FederationSettings

_SENT_TO_AND_FRO = 2
GIGABYTE = 1e9


@dataclass(frozen=True)
class Cost:
    """Cost of trainings."""

    rounds: float = 0.0
    """Rounds; one with more local epochs or iterations than the default's counts accordingly."""
    bytes: int = 0
    """Bytes to and from all sites."""
    seconds: float = 0.0
    """Seconds of the rounds, of all trials together."""

    def __add__(self, other: Cost) -> Cost:
        """Return both together."""
        return Cost(
            self.rounds + other.rounds, self.bytes + other.bytes, self.seconds + other.seconds
        )

    @classmethod
    def of(cls, records: Iterable[RoundRecord], work: float) -> Cost:
        """Add up the rounds of a trial.

        Parameters
        ----------
        records
            Its finished rounds.
        work
            Optimisation steps of one of them, by those of a round of the default.
        """
        cost = cls()
        for record in records:
            seconds = record.seconds.round
            known = seconds if seconds == seconds else 0.0  # noqa: PLR0124  # NaN is not itself
            cost += cls(work, record.bytes_down + record.bytes_up, known)
        return cost


_ROUNDING = 1 + 1e-12
"""Sums of shares of rounds are not exact."""


@dataclass(frozen=True)
class Budget:
    """Limits of a tuning; ``None`` for no limit."""

    rounds: int | None = None
    gigabytes: float | None = None
    hours: float | None = None
    kept: Cost = Cost()
    """What trials may not spend: for the trainings on other folds, or spent by these."""

    @property
    def unlimited(self) -> bool:
        """Whether it has no limit at all."""
        return self.rounds is None and self.gigabytes is None and self.hours is None

    def check(self, default: Cost, rounds: int) -> None:
        """Refuse a budget that does not even allow the default trial.

        Parameters
        ----------
        default
            What a whole training of the default costs; its seconds are not known.
        rounds
            Its rounds.

        Raises
        ------
        SettingsError
            If it allows no trial.
        """
        kept = self.kept.rounds
        if self.rounds is not None and self.rounds < rounds + kept:
            nested = f", and --nested {kept:g}" if kept else ""
            raise SettingsError(
                f"--budget-rounds {self.rounds}: allows no trial; the default setting alone has "
                f"{rounds} rounds{nested}."
            )
        gigabytes, kept = default.bytes / GIGABYTE, self.kept.bytes / GIGABYTE
        if self.gigabytes is not None and self.gigabytes < gigabytes + kept:
            nested = f", and --nested {kept:.3g} GB" if kept else ""
            raise SettingsError(
                f"--budget-gb {self.gigabytes:g}: allows no trial; the default setting alone sends "
                f"{gigabytes:.3g} GB{nested}."
            )

    def exceeded(self, spent: Cost, coming: Cost) -> str | None:
        """Return the limit that is reached, or would be passed by what comes; ``None`` if none.

        Parameters
        ----------
        spent
            Cost of all trials so far.
        coming
            Expected cost of the next piece; 0 where it is not known.
        """
        limits = (
            ("--budget-rounds", self.rounds, "rounds", 1.0),
            ("--budget-gb", self.gigabytes, "bytes", GIGABYTE),
            ("--budget-hours", self.hours, "seconds", 3600.0),
        )
        for flag, limit, what, unit in limits:
            done, more, kept = (getattr(cost, what) for cost in (spent, coming, self.kept))
            if limit is not None and (
                done + kept >= limit * unit or done + kept + more > limit * unit * _ROUNDING
            ):
                nested = f", {kept / unit:.3g} are for --nested" if kept else ""
                return f"{flag} {limit:g}: {done / unit:.3g} are spent{nested}"
        return None

    def affords(self, spent: Cost, coming: Sequence[Cost]) -> tuple[int, str | None]:
        """Return how many pieces may be trained one after another, and the limit that ends that.

        Parameters
        ----------
        spent
            Cost so far.
        coming
            Expected cost of each piece.

        Returns
        -------
        tuple
            Number of pieces from the first; the limit that leaves the next one out, ``None`` if all
            may be trained.
        """
        if self.unlimited:
            return len(coming), None
        for index, cost in enumerate(coming):
            stopped = self.exceeded(spent, cost)
            if stopped is not None:
                return index, stopped
            spent += cost
        return len(coming), None


def bytes_of_round(settings: FederationSettings, values: int, sites: int) -> int:
    """Return about how many bytes a round sends to and from all sites.

    Parameters
    ----------
    settings
        Settings of the training.
    values
        Values of the network that are federated.
    sites
        Number of sites.
    """
    width = 4 if settings.transport_dtype == "float32" else 2
    return _SENT_TO_AND_FRO * width * values * (settings.sites_per_round or sites)
