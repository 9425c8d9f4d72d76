"""Progress at the terminal: bars for people, plain lines for files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from nnunetv2_federated.federation.messages import SiteDescription
from nnunetv2_federated.federation.observer import Observer


def send_logs_to(path: Path) -> None:
    """Write everything Flower and this package log into a file instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("flwr", "nnunetv2_federated"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.propagate = False
        log.setLevel(logging.INFO)


def describe_round(record: Mapping[str, Any], num_rounds: int) -> str:
    """Return one line about a round."""
    failed = f"  failed: {', '.join(record['failed'])}" if record["failed"] else ""
    return (
        f"round {record['round'] + 1:>{len(str(num_rounds))}}/{num_rounds}"
        f"  lr {record['lr']:.5f}  train loss {record['train_loss']:+.4f}"
        f"  validation loss {record['loss']:+.4f}  Dice {record['dice']:.4f}"
        f"  {record['seconds']['round']:.1f} s{failed}"
    )


class ConsoleObserver(Observer):
    """Draws two bars on a terminal; one line a round anywhere."""

    def __init__(self, num_rounds: int, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stdout, quiet=quiet, soft_wrap=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._num_rounds = num_rounds
        self._rounds = self._progress.add_task("rounds", total=num_rounds)
        self._site = self._progress.add_task("site", total=None, visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False)

    def sites_joined(self, sites: Sequence[SiteDescription]) -> None:
        """Print a table of them."""
        packages = sorted({name for site in sites for name in site.versions})
        table = Table("site", "training", "validation", "device", "room", *packages)
        for site in sites:
            table.add_row(
                site.site,
                str(site.training_cases),
                str(site.validation_cases),
                site.device,
                f"{site.free_gb:.0f} GB",
                *(site.versions.get(name, "?") for name in packages),
            )
        self._console.print(table)
        for name in packages:
            found = {site.site: site.versions.get(name, "?") for site in sites}
            if len(set(found.values())) > 1:
                listed = ", ".join(f"{site} {number}" for site, number in found.items())
                self.say(f"sites differ in {name}: {listed}")

    def run_started(self, rounds_done: int, num_rounds: int) -> None:
        """Say where a run starts or continues."""
        self._progress.update(self._rounds, completed=rounds_done)
        if rounds_done:
            self.say(f"continuing after round {rounds_done} of {num_rounds}")

    def site_started(self, site: str, iterations: int) -> None:
        """Reset the site's bar."""
        self._progress.reset(self._site, total=iterations, description=site, visible=True)

    def iteration_done(self) -> None:
        """Advance the site's bar."""
        self._progress.advance(self._site)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """Print the round's line."""
        self._progress.advance(self._rounds)
        self.say(describe_round(record, self._num_rounds))
