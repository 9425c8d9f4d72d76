"""Trainings of a tuning on a fold by which nothing is chosen."""

from __future__ import annotations

import json
import math
from pathlib import Path

from nnunetv2_federated.experiment.tune_pieces import Piece
from nnunetv2_federated.experiment.tune_study import Trial
from nnunetv2_federated.experiment.tune_trials import TrialTrainings
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import read_state, write_atomically
from nnunetv2_federated.federation.objective import Score, noise_of_difference
from nnunetv2_federated.federation.run import RUN_FILE, read_run
from nnunetv2_federated.federation.text import clean

_DIVERGED_FILE = "diverged.json"
_FORMAT = 1
_DIVERGED_SCORE = 0.0
"""What a training that diverged counts: Dice has nothing below."""


class FoldTrainings(TrialTrainings):
    """Trainings on one other fold; all folds have one folder.

    Parameters
    ----------
    plan
        What is tuned, on that fold.
    folder, workers, say, say_round
        As of :class:`.TrialTrainings`.
    """

    @property
    def fold(self) -> int | str:
        """The fold."""
        return self._plan.base.fold

    def title(self, number: int) -> str:
        """Return what a training is called where it is told of."""
        return f"fold {self.fold}, trial {number}"

    def place(self, number: int) -> Path:
        """Return the folder of a training."""
        return self._folder / f"fold_{self.fold}_trial_{number:03d}"

    def value(self, score: Score, piece: Piece) -> float:
        """Return the value of a score, be it NaN: nothing is chosen by it."""
        del piece
        return score.value

    def diverged(self, piece: Piece, reason: str) -> None:
        """Keep that a training diverged, and why."""
        content = {"format": _FORMAT, "reason": clean(reason, 300)}
        write_atomically(self.place(piece.trial.number) / _DIVERGED_FILE, json.dumps(content))
        self._say(f"{self.title(piece.trial.number)}: diverged")

    def reason(self, number: int) -> str | None:
        """Return why a training diverged; ``None`` if it did not."""
        path = self.place(number) / _DIVERGED_FILE
        found = read_state(path, _FORMAT, "delete it, and the training goes on.")
        return None if found is None else str(found["reason"])

    def piece(self, trial: Trial) -> Piece:
        """Return the whole training of a trial's settings."""
        settings = self._plan.settings_of(trial.number, trial.values)
        return Piece(trial, settings, settings.rounds, self._plan.rounds)

    def ended(self, trial: Trial) -> bool:
        """Return whether a training has its score, or diverged."""
        return self._own_score(trial) is not None or self.reason(trial.number) is not None

    def outcome(self, trial: Trial) -> float:
        """Return the score of a training that has ended."""
        score = self._own_score(trial)
        return _DIVERGED_SCORE if score is None else score.value

    def noise(self, ours: Trial, theirs: Trial) -> float:
        """Return the noise of the difference of two; NaN if one diverged."""
        return noise_of(self._own_score(ours), self._own_score(theirs))

    def check(self, trial: Trial) -> None:
        """Refuse a training that was of other cases."""
        place = self.place(trial.number)
        if (place / RUN_FILE).is_file() and read_run(place).sites != self._plan.base.sites:
            raise SettingsError(
                f"{place}: was trained when fold {self.fold} had other cases; delete it."
            )

    def _own_score(self, trial: Trial) -> Score | None:
        return self.score(trial.number, self.piece(trial).until)


def noise_of(ours: Score | None, theirs: Score | None) -> float:
    """Return the noise of the difference of two scores; NaN if there is not one of each."""
    return math.nan if ours is None or theirs is None else noise_of_difference(ours, theirs)
