"""What sites are asked beside rounds: to validate, to score, to make a personal model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.errors import RoundError, SiteError
from nnunetv2_federated.federation.history import server_side
from nnunetv2_federated.federation.messages import (
    FullValidation,
    PersonalReport,
    SiteScore,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.objective import Score, score_of_sites
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.asking import ask
from nnunetv2_federated.flower.participants import Participants
from nnunetv2_federated.flower.records import pack_content
from nnunetv2_federated.nnunet.summary import pool_sites

Answer = TypeVar("Answer", Validation, FullValidation, PersonalReport, SiteScore)


class SiteQuestions:
    """Asks all sites of a run at the same time; who does not answer is left out and named.

    Parameters
    ----------
    grid
        Reaches the sites.
    run
        Every choice made.
    participants
        The sites, and the nodes they are reached at.
    observer
        Called with a line about each that does not answer.
    """

    def __init__(
        self, grid: Grid, run: Run, participants: Participants, observer: Observer
    ) -> None:
        self._grid = grid
        self._run = run
        self._participants = participants
        self._observer = observer

    def validate(
        self, weights: ArrayRecord, shares: Mapping[str, int], classes: int
    ) -> dict[str, Validation]:
        """Let sites validate the last round's model on patches.

        Parameters
        ----------
        weights
            The model, packed as it is sent.
        shares
            Validation iterations of each site that is asked.
        classes
            Foreground classes that each answer has to have.
        """
        questions = {site: self._question(0, weights, share) for site, share in shares.items()}
        read = functools.partial(_read_validation, classes)
        return self._ask(questions, MessageType.EVALUATE, read)

    def validate_fully(self, weights: ArrayRecord) -> dict[str, FullValidation]:
        """Let each site validate the final model on its own cases; nobody else has them."""
        questions = self._of_all(1, weights)
        self._observer.say(f"validation at {', '.join(questions)}")
        return self._ask(questions, f"{MessageType.EVALUATE}.fully", _read_full_validation)

    def personalise(self, weights: ArrayRecord) -> dict[str, PersonalReport]:
        """Let each site make its personal model of the final one, which stays there."""
        questions = self._of_all(2, weights)
        self._observer.say(f"personal models at {', '.join(questions)}")
        kind, failed = f"{MessageType.TRAIN}.personal", "has no personal model"
        return self._ask(questions, kind, PersonalReport.from_json, failed)

    def score(
        self, weights: ArrayRecord, rounds: int, shares: Mapping[str, int], classes: int
    ) -> Score:
        """Let sites score the model of a trial.

        Parameters
        ----------
        weights, shares, classes
            As of :meth:`validate`.
        rounds
            Rounds that are done.

        Raises
        ------
        RoundError
            If a site is not there or does not answer: scores of other sites cannot be compared.
        SiteError
            If one answers for another site, or for other classes.
        """
        number = rounds - self._run.settings.rounds
        questions = {site: self._question(number, weights, n) for site, n in shares.items()}
        kind = f"{MessageType.EVALUATE}.score"
        found = self._ask(questions, kind, SiteScore.from_json, "did not score")
        absent = shares.keys() - found.keys()
        if absent or not found:
            raise RoundError(f"no score of {', '.join(sorted(absent)) or 'any site'}")
        return score_of_sites(found[s].check(s, classes).blocks for s in sorted(found))

    def _question(self, number: int, weights: ArrayRecord, validate: int = 0) -> RecordDict:
        """Return a task without training, numbered from the last round on, with weights."""
        number += self._run.settings.rounds
        task = TrainTask(number, 0.0, 0, validate, run_id=self._run.run_id)
        return pack_content(task.to_json(), weights)

    def _of_all(self, number: int, weights: ArrayRecord) -> dict[str, RecordDict]:
        content = self._question(number, weights)
        return {s.site: RecordDict(dict(content)) for s in self._participants.sites.values()}

    def _ask(
        self,
        questions: Mapping[str, RecordDict],
        kind: str,
        read: Callable[[str], Answer],
        not_done: str = "did not validate",
    ) -> dict[str, Answer]:
        nodes = self._participants.present(questions, 0)
        names = {node: site for site, node in nodes.items()}
        contents = {node: questions[site] for node, site in names.items()}
        failed = dict.fromkeys(questions.keys() - nodes.keys(), "not connected")
        found: dict[str, Answer] = {}
        seconds = self._run.settings.answer_deadline
        for node, answer in ask(self._grid, kind, contents, read, seconds):
            if isinstance(answer, SiteError):
                failed[names[node]] = str(answer)
            else:
                found[names[node]] = answer
        for site, reason in sorted(failed.items()):
            self._observer.say(f"{site} {not_done}: {reason}")
        return {site: found[site] for site in questions if site in found}


def _read_validation(classes: int, payload: str) -> Validation:
    validation = Validation.from_json(payload)
    if len(validation.tp) != classes:
        raise SiteError(f"validated {len(validation.tp)} classes instead of {classes}")
    server_side({"": validation})  # whatever cannot be summed up is refused here
    return validation


def _read_full_validation(payload: str) -> FullValidation:
    validation = FullValidation.from_json(payload)
    if validation.cases:
        pool_sites([validation])  # as above
    return validation
