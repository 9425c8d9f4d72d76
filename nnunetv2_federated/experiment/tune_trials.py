"""Train the trials of a tuning, each an ordinary federated training in a folder of its own."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_federated.experiment.side_by_side import Job, train_side_by_side
from nnunetv2_federated.experiment.tune_pieces import Piece
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_study import Trial
from nnunetv2_federated.federation.errors import DIVERGED, FederationError
from nnunetv2_federated.federation.history import HISTORY_FILE, RoundRecord, read_history
from nnunetv2_federated.federation.objective import Score, read_score, score_file
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.study import trial_name
from nnunetv2_federated.federation.tuning_budget import Cost

_SIGNS_OF_DIVERGENCE = (DIVERGED, "not finite", "its update has a norm of")
"""What is said of a training that its settings have ended, not the machine."""
_WEIGHTS = ("*.pth", "state.pt")


@dataclass(frozen=True)
class TrialJob(Job):
    """A piece of a trial as a job."""

    folder_name: str = ""
    until: int = 0
    """Round of the trial's own to train to, counted from 1."""
    diverged: Callable[[str], None] = lambda reason: None  # noqa: ARG005  # a default

    @property
    def name(self) -> str:
        """Name of the trial, and of its folder."""
        return self.folder_name

    def excuses(self, reason: str) -> bool:
        """Return whether the trial's settings are why it failed, and tell so."""
        if not any(sign in reason for sign in _SIGNS_OF_DIVERGENCE):
            return False
        self.diverged(reason)
        return True


class TrialTrainings:
    """Trains trials in processes of their own.

    Parameters
    ----------
    plan
        What is tuned.
    folder
        Folder of the trials.
    workers
        Processes at a time.
    say
        Receives what happens, one line each.
    say_round
        Receives a line a round of each trial.
    """

    def __init__(
        self,
        plan: TuningPlan,
        folder: Path,
        workers: int,
        say: Callable[[str], None],
        say_round: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._folder = folder
        self.workers = workers
        self._say = say
        self._say_round = say_round

    def train(
        self,
        pieces: Sequence[Piece],
        scored: Callable[[Piece, float], None],
        diverged: Callable[[Piece, str], None],
    ) -> None:
        """Train pieces, and tell the score of each, or why it diverged.

        Raises
        ------
        FederationError
            If a training failed for another reason; the same command goes on there.
        """
        self._train_all(self.jobs(pieces, scored, diverged))

    def _train_all(self, jobs: Sequence[TrialJob]) -> None:
        train_side_by_side(jobs, self.workers, self._folder, again="")

    def jobs(
        self,
        pieces: Sequence[Piece],
        scored: Callable[[Piece, float], None],
        diverged: Callable[[Piece, str], None],
    ) -> list[TrialJob]:
        """Return what to train of :meth:`train`: a piece that has its score is told at once."""
        to_do = []
        for piece in pieces:
            score = self.score(piece.trial.number, piece.until)
            if score is None:
                to_do.append(piece)
            else:  # a kill came between the score and the study
                scored(piece, self.value(score, piece))
        return [self._job(piece, scored, diverged) for piece in to_do]

    def _run(self, piece: Piece) -> Run:
        """Return the run of a trial."""
        return replace(self._plan.base, settings=piece.settings)

    def score(self, number: int, finished_rounds: int) -> Score | None:
        """Return the score of a trial after some of its own rounds; ``None`` if there is none."""
        return read_score(score_file(self.place(number), finished_rounds))

    def value(self, score: Score, piece: Piece) -> float:
        """Return the value of a score; refuse one by which nothing can be chosen."""
        if math.isfinite(score.value):
            return score.value
        raise FederationError(
            f"trial {piece.trial.number}: its score is not a number, as no class occurs in the "
            "batches of the score; begin another study with more --score-iterations."
        )

    def title(self, number: int) -> str:
        """Return what a trial is called where it is told of."""
        return f"trial {number}"

    def place(self, number: int) -> Path:
        """Return the folder of a trial: its ``nnUNet_results``, log and scores."""
        return self._folder / trial_name(number)

    def begun(self) -> set[int]:
        """Return the numbers of the trials that have a folder."""
        places = self._folder.glob("trial_*")
        return {int(place.name.removeprefix("trial_")) for place in places}

    def spent(self, trials: Sequence[Trial]) -> Cost:
        """Return what trials have cost so far."""
        total = Cost()
        for trial in trials:
            total += self.cost(trial)
        return total

    def cost(self, trial: Trial) -> Cost:
        """Return what a trial has cost so far."""
        settings = self._plan.settings_of(trial.number, trial.values)
        return Cost.of(records_in(self.place(trial.number)), self._plan.work(settings))

    def rounds_done(self, trial: Trial) -> int:
        """Return the rounds that a trial has finished."""
        return len(records_in(self.place(trial.number)))

    def discard(self, keep: set[int]) -> None:
        """Delete the weights of all trials but some; curves, logs and scores stay."""
        for number in sorted(self.begun() - keep):
            delete_weights(self.place(number))

    def finish(self) -> None:
        """Tell whoever has to know that no trial comes any more."""

    def _job(
        self,
        piece: Piece,
        scored: Callable[[Piece, float], None],
        diverged: Callable[[Piece, str], None],
    ) -> TrialJob:
        number, place = piece.trial.number, self.place(piece.trial.number)
        title = self.title(number)
        rounds = f"to round {piece.until} of {piece.settings.rounds}"

        def ended() -> None:
            score = self.score(number, piece.until)
            if score is None:
                raise FederationError(f"{title}: ended without a score; its log is in {place}.")
            value = self.value(score, piece)
            scored(piece, value)
            self._say(f"{title}: {value:.4f} after round {piece.until}")

        environment: Mapping[str, str] = {"nnUNet_results": str(place)}
        return TrialJob(
            run=self._run(piece),
            flags=(
                *("--until-round", str(piece.until)),
                *("--score-iterations", str(self._plan.score_iterations)),
            ),
            begins=lambda: self._say(f"{title}: {rounds}: {_described(piece)}"),
            ended=ended,
            round_done=lambda line: self._say_round(f"{title}: {line}"),
            environment=environment,
            folder_name=place.name,
            until=piece.until,
            diverged=lambda reason: diverged(piece, reason),
        )


def records_in(place: Path) -> tuple[RoundRecord, ...]:
    """Return the finished rounds of the training in a folder."""
    found = sorted(place.glob(f"*/*/fold_*/{HISTORY_FILE}"))
    return read_history(found[0].parent).rounds if found else ()


def delete_weights(place: Path) -> None:
    """Delete the weights of the training in a folder; curves, log and scores stay."""
    for pattern in _WEIGHTS:
        for path in place.rglob(pattern):
            path.unlink(missing_ok=True)
    for sites in place.rglob("federation/sites"):
        shutil.rmtree(sites, ignore_errors=True)


def _described(piece: Piece) -> str:
    values = piece.trial.values
    if piece.trial.number == 0:
        return "the default settings"
    return ", ".join(f"{name} {value}" for name, value in values.items())
