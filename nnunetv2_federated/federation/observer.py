"""What a run reports while it goes on; libraries stay silent, ``cli`` draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.messages import SiteDescription
from nnunetv2_federated.federation.run import Run


class Observer:
    """Does nothing with what a run reports; override the methods of interest."""

    def note(self, text: str) -> None:
        """Receive one line the user should know before training, such as a doubtful dataset."""

    def run_prepared(self, run: Run, folder: Path) -> None:
        """Announce that a run was checked and its ``federation`` folder is written."""

    def run_started(self, rounds_done: int, num_rounds: int) -> None:
        """Announce the first round, or the round at which a run continues."""

    def sites_joined(self, sites: Sequence[SiteDescription]) -> None:
        """Receive the descriptions of sites on other machines, before the first round."""

    def say(self, text: str) -> None:
        """Receive one line about a site or a step."""

    def site_started(self, site: str, iterations: int) -> None:
        """Announce that a site begins ``iterations`` iterations (in-process runs only)."""

    def iteration_done(self) -> None:
        """Count one training or validation iteration of the site at work."""

    def round_finished(self, record: RoundRecord) -> None:
        """Receive the round's record, as it stands in ``federation.json``."""
