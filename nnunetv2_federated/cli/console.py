"""What commands print: lines, tables, logs, and the progress of a training.

Names, reasons and versions come from other machines. What prints or logs them is here: it lets no
control character through, reads no markup, and keeps a line one line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from nnunetv2_federated.cli.progress_bars import choose_bars
from nnunetv2_federated.federation.check import Check
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.logs import LONGEST_LINE, send_logs_to
from nnunetv2_federated.federation.messages import SiteDescription
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.progress import Progress
from nnunetv2_federated.federation.round_line import describe_round
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.text import LONGEST, clean, one_line


def say(text: object) -> None:
    """Print one line, at once."""
    print(one_line(text, LONGEST_LINE), flush=True)


def as_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], longest: int = LONGEST
) -> Table:
    """Return a table for a terminal; no text in it is read as markup.

    Parameters
    ----------
    title
        Line above the table; empty for none.
    columns
        Names of the columns.
    rows
        Texts of each row, as many as there are columns.
    longest
        Largest number of characters of a cell; the rest is cut off.
    """
    headers = [Column(Text(clean(name)), overflow="fold") for name in columns]
    table = Table(*headers, title=Text(clean(title), style="table.title") if title else None)
    for row in rows:
        table.add_row(*(Text(clean(cell, longest)) for cell in row))
    return table


def print_checks(title: str, checks: Iterable[Check]) -> list[str]:
    """Print what was checked as a table; return the names of what is not good.

    Parameters
    ----------
    title
        Line above the table.
    checks
        Results of the checks, one row each.
    """
    done = list(checks)
    rows = [("ok" if check.ok else "NO", check.name, check.detail) for check in done]
    table = as_table(title, ("", "", ""), rows, longest=LONGEST_LINE)
    table.show_header = False
    Console(highlight=False).print(table)
    return [check.name for check in done if not check.ok]


class ConsoleObserver(Observer):
    """Prints a line a round; draws bars on a terminal and in a notebook.

    Where no bar is drawn, as in the output of a batch job, the line says how long the training
    still takes.

    Parameters
    ----------
    num_rounds
        Rounds of the federation.
    quiet
        Print and draw nothing.
    """

    def __init__(self, num_rounds: int, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stdout, quiet=quiet, soft_wrap=True, highlight=False)
        self._bars = choose_bars(self._console, num_rounds)
        self._num_rounds = num_rounds
        self._progress = Progress(total=num_rounds)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(one_line(text, LONGEST_LINE)))

    def note(self, text: str) -> None:
        """Print a line to stderr, also with ``--quiet``."""
        print(f"note: {one_line(text, LONGEST_LINE)}", file=sys.stderr)

    def run_prepared(self, run: Run, folder: Path) -> None:
        """Send logs to ``federation.log`` from here on, and list the sites of this machine."""
        send_logs_to(folder.parent / "federation.log")
        self.say(f"{run.dataset} {run.configuration} fold {run.fold}: {len(run.site_names)} sites")
        for site in run.sites:
            self.say(
                f"  {site.name}: {len(site.training_cases)} training, "
                f"{len(site.validation_cases)} validation cases"
            )

    def sites_joined(self, sites: Sequence[SiteDescription]) -> None:
        """Print a table of the sites."""
        packages = sorted({name for site in sites for name in site.versions})
        columns = ("site", "training", "validation", "device", "room", *packages)
        rows = [
            (
                site.site,
                str(site.training_cases),
                str(site.validation_cases),
                site.device,
                f"{site.free_gb:.0f} GB",
                *(site.versions.get(name, "?") for name in packages),
            )
            for site in sites
        ]
        self._console.print(as_table("", columns, rows))
        for name in packages:
            found = {site.site: site.versions.get(name, "?") for site in sites}
            if len(set(found.values())) > 1:
                listed = ", ".join(f"{site} {number}" for site, number in found.items())
                self.say(clean(f"sites differ in {name}: {listed}", 2000))

    def run_started(self, rounds_done: int, num_rounds: int) -> None:
        """Say where a run starts or continues."""
        self._bars.set_rounds(rounds_done)
        if rounds_done:
            self.say(f"continuing after round {rounds_done} of {num_rounds}")

    def site_started(self, site: str, iterations: int) -> None:
        """Reset the site's bar."""
        self._bars.begin_site(site, iterations)

    def iteration_done(self) -> None:
        """Advance the site's bar."""
        self._bars.advance_site()

    def round_finished(self, record: RoundRecord) -> None:
        """Print the round's line."""
        self._bars.advance_round()
        left = self._progress.finished(record.round + 1)
        shown = f"  {left} left" if left and not self._bars.show_time_left else ""
        self.say(describe_round(record, self._num_rounds) + shown)
