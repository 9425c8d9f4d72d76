"""What a site says at its own terminal of a federation's course; nothing of it leaves the site."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from nnunetv2_federated.federation.aggregation import dice_per_class, mean_dice
from nnunetv2_federated.federation.messages import (
    FullValidation,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.personal import GLOBAL, read_choice
from nnunetv2_federated.federation.progress import Progress
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyEnd
from nnunetv2_federated.flower.records import unpack_payload

Say = Callable[[str], None]

_READER = "site"
_STARTING_SECONDS = 30.0
"""How long a server that does not know this site's key may still be starting."""
_REFUSAL = "refuses this site"
_JOIN, _FULL_VALIDATION = "query.join", f"{MessageType.EVALUATE}.fully"
_ENDED = "query.ended"
_PERSONAL = f"{MessageType.TRAIN}.personal"
_WAITING = "waiting for the next (Ctrl-C ends)"
_PERSONAL_NEXT = "its personal model for this site comes next"


class RoundNews:
    """Says in a line each what a round brought, and how good the final model is at this site.

    Parameters
    ----------
    say
        Called with each line.
    results
        Returns the folder in which the site's predictions of the final validation are.
    personal
        Returns the result folder of the site's personal model.
    clock
        Returns seconds that only grow.
    """

    def __init__(
        self,
        say: Say,
        results: Callable[[Context], Path],
        personal: Callable[[Context], Path],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._results = results
        self._personal = personal
        self._clock = clock
        self._progress = Progress(clock)
        self._next = _WAITING
        """What comes after the federation's own model."""
        self._ends_unvalidated = False
        """Whether the last round is the end, as nothing may be told of validation cases."""
        self.finished = False
        """Whether the federation joined last is finished."""

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Let the message be answered, and say what came of it."""
        kind = message.metadata.message_type
        # now, as a site that is asked for afterwards would build its trainer anew
        find = {_FULL_VALIDATION: self._results, _PERSONAL: self._personal}.get(kind)
        folder = find(context) if find is not None else None
        self.finished = False
        answer = call_next(message, context)
        if kind == _JOIN:
            proposal = Proposal.from_json(unpack_payload(message.content, _READER))
            settings = FederationSettings(**proposal.settings)
            self._progress = Progress(self._clock, settings.rounds)
            self._ends_unvalidated = settings.withholds
            self._next = _PERSONAL_NEXT if settings.personalises else _WAITING
        elif kind == _ENDED:
            self.finished = StudyEnd.from_json(unpack_payload(message.content, _READER)).finished
        elif kind == MessageType.TRAIN:
            self._say_round(message, answer)
        elif folder is not None and kind == _FULL_VALIDATION:
            self.finished = self._next == _WAITING
            validation = FullValidation.from_json(unpack_payload(answer.content, _READER))
            end = describe_end(validation, self._progress.total, folder)
            self._say(f"{end}; {self._next}")
        elif folder is not None:
            self.finished = True
            self._say(f"{describe_personal_here(folder)}; {_WAITING}")
        return answer

    def _say_round(self, message: Message, answer: Message) -> None:
        task = TrainTask.from_json(unpack_payload(message.content, _READER))
        report = TrainReport.from_json(unpack_payload(answer.content, _READER))
        number = task.server_round + 1
        left = self._progress.finished(number)
        line = describe_round_here(number, self._progress.total, report)
        self._say(f"{line}; about {left} left" if left else line)
        if self._ends_unvalidated and number == self._progress.total:
            self.finished = self._next == _WAITING
            self._say(
                f"federation finished after {number} rounds; its model is not validated here "
                f"(--dp-validation withhold); {self._next}"
            )


def describe_round_here(number: int, total: int | None, report: TrainReport) -> str:
    """Return one line about what a round brought at this site.

    Parameters
    ----------
    number
        Number of the round, from 1.
    total
        Rounds of the federation, ``None`` if they are not known.
    report
        The site's own report of the round.
    """
    of = f" of {total}" if total else ""
    before, after = _dice(report.received), _dice(report.validation)
    dice = f"; Dice here {after:.4f}" if after is not None else ""
    if dice and before is not None:
        dice += f", of the model as it came {before:.4f}"
    loss = "" if report.train_loss is None else f": training loss {report.train_loss:+.4f}"
    return f"round {number}{of} done{loss}{dice}; {report.seconds:.0f} s"


def describe_end(validation: FullValidation, rounds: int | None, folder: Path) -> str:
    """Return one line about the end of a federation: how good its model is at this site.

    Parameters
    ----------
    validation
        Full validation of the final model on this site's validation cases.
    rounds
        Rounds of the federation, ``None`` if they are not known.
    folder
        Folder of the predictions.
    """
    start = f"federation finished{f' after {rounds} rounds' if rounds else ''}"
    if not validation.cases:
        return f"{start}; this site has no validation case"
    metric, value = next(iter(validation.foreground_mean.items()), ("Dice", None))
    number = "not defined" if value is None else f"{value:.4f}"
    cases = "1 case" if validation.cases == 1 else f"{validation.cases} cases"
    return f"{start}: {metric} of the final model here {number} ({cases}, predictions in {folder})"


def describe_personal_here(folder: Path) -> str:
    """Return one line about the site's personal model; what it says is for this site only.

    Parameters
    ----------
    folder
        nnU-Net's result folder of the fold of the personal model.
    """
    choice = read_choice(folder)
    where = f"in {folder}"
    if choice is None or choice.cases == 0:
        return (
            "personal model: the global one: there was nothing to choose by (no validation case "
            f"has a value, or the fine-tuning diverged), {where}"
        )
    if choice.alpha == GLOBAL:
        return f"personal model: the global one, as none that is fine-tuned is better here, {where}"
    before, after = choice.scores[GLOBAL], choice.scores[choice.alpha]
    return (
        f"personal model: {choice.metric} here {before:.4f} -> {after:.4f} on {choice.cases} "
        f"validation cases, with {choice.alpha:.0%} of the fine-tuned weights, {where}"
    )


def _dice(validation: Validation | None) -> float | None:
    if validation is None or not validation.iterations:
        return None
    return mean_dice(dice_per_class(validation.tp, validation.fp, validation.fn))


class ConnectionNews:
    """Says once, in a line, why there is no connection: not yet, no more, or refused.

    Parameters
    ----------
    say
        Called with each line.
    finished
        Returns whether the federation joined last is finished.
    clock
        Returns seconds that only grow.
    """

    def __init__(
        self,
        say: Say,
        finished: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._finished = finished
        self._clock = clock
        self._said = ""
        self._was_connected = False
        self._refused_since: float | None = None
        """When the server began to refuse this site, before there was any connection."""

    def connected(self, server: object) -> None:
        """Say that there is a connection."""
        self._was_connected, self._said = True, ""
        self._say(f"connected to {server}")

    def lost(self, reason: str) -> None:
        """Say why there is no connection, unless that was the last thing said.

        Parameters
        ----------
        reason
            Text of the error that ended the connection, or prevented it.
        """
        state, line = self._state(reason)
        if state != self._said:
            self._said = state
            self._say(line)

    def _state(self, reason: str) -> tuple[str, str]:
        if self._finished():
            return "ended", (
                "the server has ended, as its federation is finished; waiting for the next "
                "(Ctrl-C ends)"
            )
        if self._was_connected:
            return reason, f"{reason}; connecting again"
        if _REFUSAL not in reason:
            self._refused_since = None
            return "starting", f"{reason}; the server is not ready yet, waiting for it"
        now = self._clock()
        self._refused_since = now if self._refused_since is None else self._refused_since
        if now - self._refused_since < _STARTING_SECONDS:
            return "starting", (
                "the server is not ready yet: it does not know this site's key so far; waiting"
            )
        return reason, f"{reason}; trying again"
