"""Which sites take part: asked once, checked, and looked for again before every round."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.errors import RoundError, SiteError
from nnunetv2_federated.federation.messages import Proposal, SiteDescription
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.settings import Run
from nnunetv2_federated.flower.records import (
    CONFIG,
    NOT_YET,
    PHASE_SECONDS,
    pack_payload,
    unpack_payload,
)

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 5.0
_CONNECT_SECONDS = 120.0
_JOIN_SECONDS = 900.0
"""A site builds its trainer before it answers."""


class Attendance:
    """The sites of a run and the nodes they are reached at.

    Parameters
    ----------
    grid
        Reaches the nodes.
    run
        Says which sites are expected.
    manifest, plans_hash
        Of the server's network and plans; a site must have the same.
    observer
        Told who joined and who did not.
    """

    def __init__(
        self, grid: Grid, run: Run, manifest: str, plans_hash: str, observer: Observer
    ) -> None:
        self.sites: dict[int, SiteDescription] = {}
        self._grid = grid
        self._run = run
        self._expected = {"network": manifest, "plans": plans_hash}
        self._observer = observer
        self._refused: dict[str, str] = {}
        self._ask_again: dict[int, float] = {}
        self._last_said: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """Names of all sites of the run, connected or not."""
        return sorted(self._run.site_names)

    def gather(self) -> None:
        """Wait for the sites and let them describe themselves.

        Sites on other machines may come late: it is enough that ``min_replies`` of them are there
        when the time is over, or when all others have refused.

        Raises
        ------
        RoundError
            If too few sites are there in time; names the others and what they said.
        SiteError
            If a site on this machine cannot take part.
        """
        if not self._run.remote_sites:
            self._gather_here()
            return
        needed = self._run.settings.min_replies or len(self._run.remote_sites)
        self._observer.say(f"waiting for {', '.join(self._run.remote_sites)}")
        end = time.monotonic() + self._run.settings.wait_for_sites
        while len(self.sites) + len(self._refused) < len(self._run.remote_sites):
            self._admit_new()
            possible = len(self._run.remote_sites) - len(self._refused)
            if time.monotonic() > end or possible < needed:
                break
            time.sleep(_LOOK_SECONDS)
        if len(self.sites) < needed:
            raise RoundError(
                f"{len(self.sites)} of {len(self._run.remote_sites)} sites take part, {needed} are "
                f"required (--min-replies). {self._absent()}"
            )
        if len(self.sites) < len(self._run.remote_sites):
            self._observer.say(f"beginning without all sites. {self._absent()}")
        self._sort()

    def present(self, names: Collection[str], needed: int) -> dict[str, int]:
        """Return the node of each of these sites that is connected now.

        Waits, at most ``wait_for_sites`` seconds, until ``needed`` of them are.
        """
        if not self._run.remote_sites:
            return {s.site: node for node, s in self.sites.items() if s.site in names}
        end = time.monotonic() + self._run.settings.wait_for_sites
        while True:
            self._admit_new()
            online = set(self._grid.get_node_ids())
            here = {
                s.site: node for node, s in self.sites.items() if s.site in names and node in online
            }
            if len(here) >= needed or time.monotonic() > end:
                self._sort()
                return here
            time.sleep(_LOOK_SECONDS)

    def _gather_here(self) -> None:
        expected = [site.name for site in self._run.sites]
        end = time.monotonic() + _CONNECT_SECONDS
        while len(nodes := list(self._grid.get_node_ids())) < len(expected):
            if time.monotonic() > end:
                raise RoundError(f"{len(nodes)} of {len(expected)} sites are connected")
            time.sleep(0.2)
        questions = [Message(RecordDict(), node, "query.describe") for node in nodes]
        for answer in self._grid.send_and_receive(questions, timeout=PHASE_SECONDS):
            if answer.has_error():
                raise SiteError(f"a site cannot take part: {answer.error.reason}")
            self._enter(answer)
        names = sorted(site.site for site in self.sites.values())
        if names != sorted(expected):
            raise SiteError(f"expected the sites {', '.join(expected)}; got {', '.join(names)}")
        self._sort()

    def _admit_new(self) -> None:
        """Ask nodes that have not joined, or not yet agreed, to join."""
        now = time.monotonic()
        names = self._names()
        asked = [
            node
            for node, name in names.items()
            if node not in self.sites
            and name not in self._refused
            and self._ask_again.get(node, 0.0) <= now
        ]
        for node in asked:
            self._ask_again[node] = now + _ASK_AGAIN_SECONDS
        questions = [
            Message(
                RecordDict({CONFIG: pack_payload(self._proposal(names[node]).to_json())}),
                node,
                "query.join",
            )
            for node in asked
        ]
        for answer in self._grid.send_and_receive(questions, timeout=_JOIN_SECONDS):
            name = names[answer.metadata.src_node_id]
            if answer.has_error():
                self._refuse(
                    name, answer.error.reason or "failed", again=answer.error.code == NOT_YET
                )
                continue
            try:
                self._enter(answer, name)
                self._observer.say(f"{name} takes part")
            except SiteError as error:
                self._refuse(name, str(error), again=False)

    def _names(self) -> dict[int, str]:
        """Name of the key each connected node came with; names of strangers are left out."""
        named: Mapping[int, str] = getattr(self._grid, "site_names", dict)()
        return {node: name for node, name in named.items() if name in self._run.remote_sites}

    def _enter(self, answer: Message, name: str | None = None) -> None:
        site = SiteDescription.from_json(unpack_payload(answer.content))
        if name is not None and site.site != name:
            raise SiteError(f"the key of {name} was used by a site that calls itself {site.site}")
        for what, theirs in (("network", site.manifest), ("plans", site.plans)):
            if theirs != self._expected[what]:
                raise SiteError(f"site {site.site} has another {what} than the server")
        self.sites[answer.metadata.src_node_id] = site

    def _proposal(self, site: str) -> Proposal:
        run = self._run
        return Proposal(
            started=run.started,
            dataset=run.dataset,
            configuration=run.configuration,
            fold=run.fold,
            trainer=run.trainer,
            plans=run.plans,
            plans_hash=self._expected["plans"],
            position=self.names.index(site),
            settings=asdict(run.settings),
        )

    def _absent(self) -> str:
        known = {site.site for site in self.sites.values()}
        return "; ".join(
            f"{name}: {self._refused.get(name, 'not connected, or not approved there yet')}"
            for name in self._run.remote_sites
            if name not in known
        )

    def _refuse(self, name: str, reason: str, *, again: bool) -> None:
        """Do without a site, or ask it again later; say why, once."""
        if not again:
            self._refused[name] = reason
        if self._last_said.get(name) != reason:
            self._last_said[name] = reason
            self._observer.say(f"{name}: {reason}")

    def _sort(self) -> None:
        self.sites = dict(sorted(self.sites.items(), key=lambda item: item[1].site))
