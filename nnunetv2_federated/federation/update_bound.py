"""Which updates are too long to be aggregated, and what is done with them."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self, TypeVar

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.history import Outcome, RoundRecord, UpdateRecord
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.update_norms import (
    Direction,
    cosines_with_others,
    measure_update,
    shorten_update,
)

LARGEST_NORM = 1e12
"""Longest update that is ever aggregated. Far above any training's, and so small that no strategy's
sums and squares of distances leave the range of float32 (3.4e38)."""

MULTIPLE = 10.0
"""With ``auto``: an update may be so many times as long as is usual."""

ENOUGH = 3
"""Norms from which one can tell what is usual: one of three may lie."""

_REMEMBERED = 1000
"""Norms of earlier rounds that are kept."""

ACCEPTED: Final = "accepted"
CLIPPED: Final = "clipped"
REFUSED: Final = "refused"


class Reply(Protocol):
    """A site's reply, as far as its bound needs it."""

    site: str
    vector: Vector
    """The trained weights."""
    weight: float
    """Weight of the vector in the mean."""


R = TypeVar("R", bound=Reply)


@dataclass(frozen=True)
class Update:
    """Measurements of one update, and what became of it."""

    norm: float
    direction: Direction
    weight: float
    bound: float = LARGEST_NORM
    """Longest norm that was allowed for it."""
    outcome: Outcome = ACCEPTED

    @property
    def aggregated_norm(self) -> float:
        """Norm with which it was aggregated; 0 if it was refused."""
        if self.outcome == REFUSED:
            return 0.0
        return min(self.norm, self.bound)


class UpdateBound:
    """Accepts, clips or refuses the updates of each round by their norm.

    What is usual, with ``auto``, is the median of the norms accepted in earlier rounds or that of
    this round so far, whichever is larger: after a change that all sites see, such as a large step
    of the server's optimizer, all updates grow. Updates that change nothing are left out of it.

    Parameters
    ----------
    limit
        Longest norm, ``auto``, or ``none``.
    clip
        Shorten what is too long to the bound, in place of refusing it.
    earlier
        Norms accepted in earlier rounds, see :func:`accepted_norms`.
    """

    def __init__(self, limit: float | str, *, clip: bool, earlier: Iterable[float] = ()) -> None:
        self.updates: dict[str, Update] = {}
        """Updates of the present round, by site."""
        self._limit = limit
        self._clip = clip
        self._earlier = deque(earlier, maxlen=_REMEMBERED)
        self._usual_before = 0.0

    @classmethod
    def of(cls, settings: FederationSettings, sites: int, earlier: Iterable[float] = ()) -> Self:
        """Build the bound of a run; of fewer than three sites ``auto`` cannot tell who is odd."""
        limit = settings.max_update_norm
        if limit == "auto" and sites < ENOUGH:
            limit = "none"
        return cls(limit, clip=settings.oversized_update == "clip", earlier=earlier)

    def apply(self, replies: Iterable[R], sent: Vector) -> Iterator[R]:
        """Pass a round's replies on in their order, once it is known what becomes of each.

        ``updates`` then says what; the vector of one that was clipped is replaced. A reply is held
        back only while it is longer than earlier rounds allow and fewer than three norms of this
        round are known; that is so for the first two replies of a run.

        Parameters
        ----------
        replies
            Replies in site order, each site once, with finite weights.
        sent
            The weights that the sites were sent.
        """
        self.updates = {}
        self._usual_before = _usual(self._earlier)
        waiting: deque[R] = deque()
        for reply in replies:
            norm, direction = measure_update(reply.vector, sent)
            self.updates[reply.site] = Update(norm, direction, reply.weight)
            waiting.append(reply)
            while waiting and self._can_decide(self.updates[waiting[0].site].norm):
                yield self._decided(waiting.popleft(), sent)
        while waiting:
            yield self._decided(waiting.popleft(), sent)
        self._earlier.extend(u.aggregated_norm for u in self.updates.values() if u.aggregated_norm)

    def refusal(self, site: str) -> str | None:
        """Say why a site's update was refused; ``None`` if it was not."""
        update = self.updates[site]
        if update.outcome != REFUSED:
            return None
        allowed = f"at most {update.bound:.3g} is allowed"
        if update.bound < LARGEST_NORM:
            allowed += f" by --max-update-norm {self._limit}"
            if self._limit == "auto":
                allowed += f", {MULTIPLE:g} times the usual"
        return f"its update has a norm of {update.norm:.3g}, {allowed}"

    def record(self) -> dict[str, UpdateRecord]:
        """Describe the round's updates, by site."""
        updates = list(self.updates.values())
        cosines = cosines_with_others(
            [update.direction for update in updates],
            [update.weight * update.aggregated_norm for update in updates],
        )
        return {
            site: UpdateRecord(
                norm=update.norm,
                cosine=cosine if math.isfinite(cosine) else None,
                bound=update.bound if update.bound < LARGEST_NORM else None,
                outcome=update.outcome,
            )
            for (site, update), cosine in zip(self.updates.items(), cosines, strict=True)
        }

    def _can_decide(self, norm: float) -> bool:
        usual = norm == 0 or norm <= MULTIPLE * self._usual_before
        return self._limit != "auto" or usual or len(self.updates) >= ENOUGH

    def _bound(self, norm: float) -> float:
        if self._limit != "auto":
            return LARGEST_NORM if self._limit == "none" else min(float(self._limit), LARGEST_NORM)
        usual = self._usual_before
        if norm > MULTIPLE * usual:
            usual = max(usual, _usual([update.norm for update in self.updates.values()]))
        return min(MULTIPLE * usual, LARGEST_NORM) if usual else LARGEST_NORM

    def _decided(self, reply: R, sent: Vector) -> R:
        update = self.updates[reply.site]
        bound = self._bound(update.norm)
        outcome: Outcome = ACCEPTED
        if update.norm > bound:
            outcome = CLIPPED if self._clip and update.norm <= LARGEST_NORM else REFUSED
        if outcome == CLIPPED:
            reply.vector = shorten_update(reply.vector, sent, bound / update.norm)
        self.updates[reply.site] = replace(update, bound=bound, outcome=outcome)
        return reply


def _usual(norms: Iterable[float]) -> float:
    """Return the (lower) median of the norms that are not 0, or 0 for fewer than three."""
    known = [norm for norm in norms if norm > 0]
    return statistics.median_low(known) if len(known) >= ENOUGH else 0.0


def accepted_norms(rounds: Sequence[RoundRecord]) -> list[float]:
    """Return the norms with which the updates of a run's rounds were aggregated."""
    return [
        min(update.norm, update.bound or LARGEST_NORM)
        for record in rounds
        for update in record.updates.values()
        if update.outcome != REFUSED and update.norm > 0
    ]
