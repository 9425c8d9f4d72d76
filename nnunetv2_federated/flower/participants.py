"""The sites that take part: asked once, checked, and looked for again before every round."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import RoundError, SettingsError, SiteError
from nnunetv2_federated.federation.messages import SiteDescription
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.asking import ask_all
from nnunetv2_federated.flower.enrolment import LOOK_SECONDS, Enrolment
from nnunetv2_federated.flower.site_grid import RemoteGrid

_CONNECT_SECONDS = 120.0


@dataclass(frozen=True)
class Requirements:
    """What a site must have as the server has it."""

    network_hash: str
    """Hash of names, shapes and types of the federated tensors, :func:`.weights.network_hash`."""
    plans_hash: str
    """Hash of the plans, :func:`.agreement.hash_plans`."""
    declared: Mapping[str, Any] = field(default_factory=dict)
    """Channels and labels; what the server does not declare is not compared."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Names and versions of those that define what plans and trainer name; a site approves them."""
    classes: int | None = None
    """Foreground classes or regions that a validation counts voxels of; ``None`` if unknown."""


class Participants:
    """The sites of a run and the nodes they are reached at.

    Parameters
    ----------
    grid
        Reaches the nodes.
    run
        The run, which says which sites are expected.
    required
        What a site must have as the server has it.
    observer
        Called with the sites that joined, and a line about each that did not.

    Raises
    ------
    SettingsError
        If the sites are on other machines and the Grid does not know them by their keys.
    """

    def __init__(self, grid: Grid, run: Run, required: Requirements, observer: Observer) -> None:
        self._grid = grid
        self._run = run
        self._required = required
        self._observer = observer
        self._described: dict[int, SiteDescription] = {}
        """Sites on this machine, by node."""
        self._missed: set[str] = set()
        """Sites that were waited for in vain, and are not waited for again before they are back."""
        self._enrolment: Enrolment[SiteDescription] | None = None
        if run.remote_sites:
            self._enrolment = self._enrol(grid)

    def _enrol(self, grid: Grid) -> Enrolment[SiteDescription]:
        if not isinstance(grid, RemoteGrid):
            raise SettingsError(
                "--remote-sites: this run has sites on other machines; start it with "
                "nnUNetv2_federated_server."
            )
        return Enrolment(
            grid,
            self._run.remote_sites,
            "join",
            question=self._proposal,
            read=self._read,
            say=self._observer.say,
        )

    @property
    def remote(self) -> bool:
        """Whether the sites are on other machines."""
        return self._enrolment is not None

    @property
    def sites(self) -> dict[int, SiteDescription]:
        """What each site told about itself, by node, in the order of the sites' names."""
        return self._described if self._enrolment is None else self._enrolment.answers

    @property
    def run_id(self) -> str:
        """Identifier of the run at sites on other machines."""
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
        if self._enrolment is None:
            self._gather_here()
            return
        needed, remedy = self._run.needed(len(self._run.remote_sites)), "--min-replies"
        if self._run.study is not None:  # trials that others have scored cannot be compared
            needed, remedy = len(self._run.remote_sites), "all of a study, for every trial"
        self._enrolment.wait(needed, self._run.settings.wait_for_sites, remedy)
        self._observer.sites_joined(list(self.sites.values()))

    def present(self, names: Collection[str], needed: int) -> dict[str, int]:
        """Return the node of each of these sites that is connected now.

        Waits, at most ``wait_for_sites`` seconds, until ``needed`` of them are. Where
        ``min_replies`` says nothing, a site that took part and is gone is waited for, too, but
        once: it may have been killed and be on its way back.
        """
        if self._enrolment is None:
            return self._nodes_of(names, self.sites)
        end = time.monotonic() + self._run.settings.wait_for_sites
        while True:
            self._enrolment.look()
            here = self._nodes_of(names, set(self._grid.get_node_ids()))
            self._missed -= here.keys()
            awaited = self._awaited(names) - here.keys()
            if len(here) >= needed and not awaited:
                return here
            if time.monotonic() > end:
                self._missed |= awaited
                return here
            time.sleep(LOOK_SECONDS)

    def _nodes_of(self, names: Collection[str], online: Collection[int]) -> dict[str, int]:
        return {
            site.site: node
            for node, site in self.sites.items()
            if site.site in names and node in online
        }

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
        found = ask_all(
            self._grid,
            "query.describe",
            {node: RecordDict() for node in nodes},
            self._read,
            self._run.settings.answer_deadline,
            refusal=lambda _, reason: f"a site cannot take part: {reason}",
        )
        names = sorted(site.site for site in found.values())
        if names != sorted(expected):
            raise SiteError(f"expected the sites {', '.join(expected)}; got {', '.join(names)}")
        self._described = dict(sorted(found.items(), key=lambda item: item[1].site))

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
            queue={name: list(folds) for name, folds in run.trainings.items()},
            trainer=run.trainer,
            plans_name=run.plans_name,
            plans_hash=self._required.plans_hash,
            site_index=self.names.index(site),
            settings=asdict(run.settings),
            packages=dict(self._required.packages),
            npz=run.npz,
            study=run.study,
            trial=run.trial,
        ).to_json()
