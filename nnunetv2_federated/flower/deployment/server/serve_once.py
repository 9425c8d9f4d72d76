"""Work that sites on other machines agree to and do once: a plan, a choice, an evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.flower.deployment.server.network_grid import NetworkGrid
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, open_grid
from nnunetv2_federated.flower.enrolment import Answer, Enrolment

_BUSY = "another command is at work there; wait until it ends, or stop it."


@contextmanager
def agreed_sites(
    folder: Path,
    server: ServerSettings,
    sites: Sequence[str],
    *,
    kind: str,
    proposal: str,
    read: Callable[[str], Answer],
    wait_for_sites: float,
    say: Callable[[str], None],
) -> Iterator[tuple[NetworkGrid, dict[int, Answer]]]:
    """Start a SuperLink, and wait until all sites have agreed to a proposal.

    Parameters
    ----------
    folder
        Folder of the SuperLink's files, which is deleted once the work is done. A file of its name
        with ``.lock`` is held meanwhile.
    server
        Credentials and address of the server.
    sites
        Names of the sites; all are needed.
    kind
        Kind of message that asks for agreement.
    proposal
        What the sites approve, as JSON.
    read
        Reads what a site answers that agrees.
    wait_for_sites
        Seconds to wait for a site, at the start and when it was lost.
    say
        Called with one line about each step.

    Yields
    ------
    tuple
        The grid that reaches the sites, and what each node has answered.

    Raises
    ------
    SettingsError
        If another command holds the folder.
    RoundError
        If not all sites are there in time.
    """
    with only_one(folder.with_name(f"{folder.name}.lock"), _BUSY, remove=True):
        with open_grid(folder, server, sites, say, patience=wait_for_sites) as grid:
            enrolment = Enrolment(
                grid, sites, kind, question=lambda _: proposal, read=read, say=say
            )
            enrolment.wait(len(sites), wait_for_sites, "leave sites out with --remote-sites")
            yield grid, enrolment.answers
        shutil.rmtree(folder)
