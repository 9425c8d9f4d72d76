"""An observer that says notes, and a line a round, to whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.logs import send_logs_to
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.round_line import describe_round
from nnunetv2_federated.federation.run import Run


class LineObserver(Observer):
    """Says what happens, one line each; logs go to the run's ``federation.log``.

    Parameters
    ----------
    say
        Receives notes and steps.
    say_round
        Receives a line a round; ``None`` for ``say``.
    """

    def __init__(
        self, say: Callable[[str], None], say_round: Callable[[str], None] | None = None
    ) -> None:
        self._say = say
        self._say_round = say_round or say
        self._num_rounds = 0

    def run_prepared(self, run: Run, folder: Path) -> None:
        """Send logs to ``federation.log`` from here on."""
        del run
        send_logs_to(folder.parent / "federation.log")

    def say(self, text: str) -> None:
        """Say a line."""
        self._say(text)

    def note(self, text: str) -> None:
        """Say a line the user should know."""
        self._say(f"note: {text}")

    def run_started(self, rounds_done: int, num_rounds: int) -> None:
        """Say where a run continues."""
        self._num_rounds = num_rounds
        if rounds_done:
            self._say(f"continuing after round {rounds_done} of {num_rounds}")

    def round_finished(self, record: RoundRecord) -> None:
        """Say how a round went."""
        self._say_round(describe_round(record, self._num_rounds))
