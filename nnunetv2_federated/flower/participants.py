"""Which sites take part: asked once, checked, and looked for again before every round."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import RoundError, SiteError
from nnunetv2_federated.federation.messages import Proposal, SiteDescription
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.asking import ask
from nnunetv2_federated.flower.enrolment import LOOK_SECONDS, RemoteGrid, RollCall

_CONNECT_SECONDS = 120.0


@dataclass(frozen=True)
class Requirements:
    """What a site must have as the server has it."""

    network_hash: str
    """:func:`.weights.network_hash`."""
    plans_hash: str
    declared: Mapping[str, Any] = field(default_factory=dict)
    """Channels and labels; what the server does not declare is not compared."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Names and versions of those that define what plans and trainer name; a site approves them."""
    classes: int | None = None
    """Foreground classes or regions that a validation counts voxels of; ``None`` if unknown."""


class Attendance:
    """The sites of a run and the nodes they are reached at.

    Parameters
    ----------
    grid
        Reaches the nodes.
    run
        Says which sites are expected.
    same
        What a site must have as the server has it.
    observer
        Told who joined and who did not.
    """

    def __init__(self, grid: Grid, run: Run, same: Requirements, observer: Observer) -> None:
        self._grid = grid
        self._run = run
        self._required = same
        self._observer = observer
        self._here: dict[int, SiteDescription] = {}
        self._missed: set[str] = set()
        """Who was waited for in vain, and is not waited for again before it is back."""
        self._roll: RollCall[SiteDescription] | None = None
        if run.remote_sites:
            self._roll = RollCall(
                cast(RemoteGrid, grid),
                run.remote_sites,
                "join",
                question=self._proposal,
                read=self._read,
                say=observer.say,
            )

    @property
    def remote(self) -> bool:
        """Whether the sites are on other machines."""
        return self._roll is not None

    @property
    def sites(self) -> dict[int, SiteDescription]:
        """What each site told about itself, by node, in the order of the sites' names."""
        return self._here if self._roll is None else self._roll.answers

    @property
    def run_id(self) -> str:
        """Identifies the run at sites on other machines."""
        return self._run.run_id

    @property
    def classes(self) -> int | None:
        """See :attr:`Requirements.classes`."""
        return self._required.classes

    @property
    def names(self) -> list[str]:
        """Names of all sites of the run, connected or not."""
        return sorted(self._run.site_names)

    def gather(self) -> None:
        """Wait for the sites and let them describe themselves.

        Of sites on other machines it is enough that as many are there in time as a round needs.

        Raises
        ------
        RoundError
            If too few sites are there in time; names the others and what they said.
        SiteError
            If a site on this machine cannot take part.
        """
        if self._roll is None:
            self._gather_here()
            return
        needed = self._run.needed(len(self._run.remote_sites))
        self._roll.wait(needed, self._run.settings.wait_for_sites, "--min-replies")
        self._observer.sites_joined(list(self.sites.values()))

    def present(self, names: Collection[str], needed: int) -> dict[str, int]:
        """Return the node of each of these sites that is connected now.

        Waits, at most ``wait_for_sites`` seconds, until ``needed`` of them are. Where
        ``min_replies`` says nothing, a site that took part and is gone is waited for, too, but
        once: it may have been killed and be on its way back.
        """
        if self._roll is None:
            return {s.site: node for node, s in self.sites.items() if s.site in names}
        end = time.monotonic() + self._run.settings.wait_for_sites
        while True:
            self._roll.look()
            online = set(self._grid.get_node_ids())
            here = {
                s.site: node for node, s in self.sites.items() if s.site in names and node in online
            }
            self._missed -= here.keys()
            awaited = self._awaited(names) - here.keys()
            if len(here) >= needed and not awaited:
                return here
            if time.monotonic() > end:
                self._missed |= awaited
                return here
            time.sleep(LOOK_SECONDS)

    def _awaited(self, names: Collection[str]) -> set[str]:
        if self._run.settings.min_replies is not None:
            return set()
        return {s.site for s in self.sites.values() if s.site in names} - self._missed

    def _gather_here(self) -> None:
        expected = [site.name for site in self._run.sites]
        end = time.monotonic() + _CONNECT_SECONDS
        while len(nodes := list(self._grid.get_node_ids())) < len(expected):
            if time.monotonic() > end:
                raise RoundError(f"{len(nodes)} of {len(expected)} sites are connected")
            time.sleep(LOOK_SECONDS)
        questions = [Message(RecordDict(), node, "query.describe") for node in nodes]
        found = {}
        longest = self._run.settings.answer_deadline
        for node, answer in ask(self._grid, questions, self._read, longest):
            if isinstance(answer, SiteError):
                raise SiteError(f"a site cannot take part: {answer}") from answer
            found[node] = answer
        names = sorted(site.site for site in found.values())
        if names != sorted(expected):
            raise SiteError(f"expected the sites {', '.join(expected)}; got {', '.join(names)}")
        self._here = dict(sorted(found.items(), key=lambda item: item[1].site))

    def _read(self, payload: str) -> SiteDescription:
        site = SiteDescription.from_json(payload)
        if site.network_hash != self._required.network_hash:
            raise SiteError(f"site {site.site} has another network than the server")
        if site.plans_hash != self._required.plans_hash:
            raise SiteError(f"site {site.site} has other plans than the server")
        ours = declared_of(self._required.declared)
        theirs = {name: value for name, value in declared_of(site.declared).items() if name in ours}
        difference = find_difference(theirs, ours)
        if difference is not None:
            reason = f"; {difference.hint}" if difference.hint else ""
            raise SiteError(
                f"site {site.site}: {difference.field} of its dataset.json is {difference.ours}, "
                f"of the server's {difference.theirs}{reason}; they must be the same"
            )
        return site

    def _proposal(self, site: str) -> str:
        run = self._run
        return Proposal(
            run_id=run.run_id,
            dataset=run.dataset,
            configuration=run.configuration,
            fold=run.fold,
            trainer=run.trainer,
            plans_name=run.plans_name,
            plans_hash=self._required.plans_hash,
            site_index=self.names.index(site),
            settings=asdict(run.settings),
            packages=dict(self._required.packages),
        ).to_json()
