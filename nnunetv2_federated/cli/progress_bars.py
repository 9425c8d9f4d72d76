"""Progress bars of a training: on a terminal, in a notebook, and none where output is a file."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from nnunetv2_federated.federation.text import clean

_LONGEST_NAME = 24


def choose_bars(console: Console, num_rounds: int) -> ProgressBars:
    """Return bars that suit where the console prints.

    Parameters
    ----------
    console
        Console that prints the lines above the bars.
    num_rounds
        Rounds of the federation.
    """
    if console.quiet:
        return NoBars()
    if console.is_jupyter:
        return NotebookBars(num_rounds)
    if console.is_terminal:
        return TerminalBars(console, num_rounds)
    return NoBars()


class ProgressBars(ABC):
    """A bar of the rounds, and one of the iterations of the site at work."""

    show_time_left: bool
    """Whether the bars show how long the training still takes."""

    @abstractmethod
    def start(self) -> None:
        """Draw the bars."""

    @abstractmethod
    def stop(self) -> None:
        """Leave the bars as they are and end them."""

    @abstractmethod
    def set_rounds(self, done: int) -> None:
        """Show that so many rounds are done."""

    @abstractmethod
    def advance_round(self) -> None:
        """Show that one more round is done."""

    @abstractmethod
    def begin_site(self, name: str, iterations: int) -> None:
        """Begin the bar of a site's iterations anew."""

    @abstractmethod
    def advance_site(self) -> None:
        """Show that one more iteration is done."""


class NoBars(ProgressBars):
    """Draws nothing: a file is read later, line by line."""

    show_time_left = False

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def set_rounds(self, done: int) -> None:
        """Do nothing."""

    def advance_round(self) -> None:
        """Do nothing."""

    def begin_site(self, name: str, iterations: int) -> None:
        """Do nothing."""

    def advance_site(self) -> None:
        """Do nothing."""


class TerminalBars(ProgressBars):
    """Rich's bars, below the lines of the same console.

    Parameters
    ----------
    console
        Console of the terminal.
    num_rounds
        Rounds of the federation.
    """

    show_time_left = True

    def __init__(self, console: Console, num_rounds: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._rounds = self._progress.add_task("rounds", total=num_rounds)
        self._site = self._progress.add_task("site", total=None, visible=False)

    def start(self) -> None:
        """Draw the bars."""
        self._progress.start()

    def stop(self) -> None:
        """Leave the bars as they are and end them."""
        self._progress.stop()

    def set_rounds(self, done: int) -> None:
        """Show that so many rounds are done."""
        self._progress.update(self._rounds, completed=done)

    def advance_round(self) -> None:
        """Show that one more round is done."""
        self._progress.advance(self._rounds)

    def begin_site(self, name: str, iterations: int) -> None:
        """Begin the bar of a site's iterations anew."""
        self._progress.reset(
            self._site, total=iterations, description=clean(name, _LONGEST_NAME), visible=True
        )

    def advance_site(self) -> None:
        """Show that one more iteration is done."""
        self._progress.advance(self._site)

    def refresh(self) -> None:
        """Draw the bars as they are now."""
        self._progress.refresh()


class NotebookBars(ProgressBars):
    """Bars of tqdm.auto: widgets where the notebook has them, else text.

    Parameters
    ----------
    num_rounds
        Rounds of the federation.
    """

    show_time_left = True

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._bars: list[Any] = []
        """The bar of the rounds and the bar of the site, while they are drawn."""

    def start(self) -> None:
        """Draw the bars."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a text bar is drawn where widgets are absent
            from tqdm.auto import tqdm  # noqa: PLC0415  # asks the notebook for its widgets

        self._bars = [
            tqdm(total=self._num_rounds, desc="rounds", unit="round"),
            tqdm(desc="site", unit="iteration", leave=False),
        ]

    def stop(self) -> None:
        """Leave the bars as they are and end them."""
        for bar in self._bars:
            bar.close()
        self._bars = []

    def set_rounds(self, done: int) -> None:
        """Show that so many rounds are done, which are no measure of the speed."""
        for bar in self._bars[:1]:
            bar.reset(total=self._num_rounds)
            bar.initial = bar.n = done
            bar.refresh()

    def advance_round(self) -> None:
        """Show that one more round is done."""
        for bar in self._bars[:1]:
            bar.update()

    def begin_site(self, name: str, iterations: int) -> None:
        """Begin the bar of a site's iterations anew."""
        for bar in self._bars[1:]:
            bar.reset(total=iterations)
            bar.set_description(clean(name, _LONGEST_NAME))

    def advance_site(self) -> None:
        """Show that one more iteration is done."""
        for bar in self._bars[1:]:
            bar.update()
