"""What a site remembers of what it was asked: no work is done twice, what is spent stays spent.

One private file per site process, ``ledger.json``: the number of the last signed message, what was
spent of each dataset over all runs, and how far the site is in each run. Beside it the last answer
of each kind of the present run, for a server that lost it and asks the same again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from flwr.app import RecordDict
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from nnunetv2_federated.federation.errors import CheckpointError, SettingsError, SiteError
from nnunetv2_federated.federation.files import (
    private_folder,
    read_state,
    wait_for_turn,
    write_state,
)
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.flower.deployment.site.kept_answers import AnswerLostError, KeptAnswers
from nnunetv2_federated.flower.deployment.site.limits import Limits, Spent

LEDGER = "ledger.json"
ROUND, EVALUATION, VALIDATION = "round", "evaluation", "full validation"
PERSONAL, SCORE = "personal model", "score"
"""Kinds of work: of all but rounds and scores a run has one each."""
_AFTER_ROUNDS = (EVALUATION, VALIDATION, PERSONAL)
_STEPS = (ROUND, SCORE)
"""Kinds of work of which a run has one for each round, or after some."""
_KINDS = (*_STEPS, *_AFTER_ROUNDS)
_NOTHING: dict[str, Any] = {"step": -1, "digest": "", "done": True}
_FORMAT = 1
_SHORTEST_PREFIX = 8
_REMEDY = (
    "restore it from a backup. If it is lost, delete it: the site then forgets what it has given, "
    "and trains in no run it took part in before"
)


@dataclass(frozen=True)
class Question:
    """A piece of work that is done once."""

    run: str
    """Identifier of the run."""
    kind: str
    """:data:`ROUND`, :data:`EVALUATION`, :data:`VALIDATION`, :data:`PERSONAL` or :data:`SCORE`."""
    step: int
    """Number of the round, from 0; of a score the rounds before it; of the others there is one."""
    digest: str
    """SHA-256 of what the work depends on."""

    @property
    def is_round(self) -> bool:
        """Whether it is training."""
        return self.kind == ROUND

    def __str__(self) -> str:
        if self.kind == SCORE:
            return f"the score after round {self.step}"
        return _step(self.step) if self.is_round else f"the {self.kind}"


_Flag = Annotated[bool, Field(strict=True)]
_Text = Annotated[str, Field(strict=True)]
_Count = Annotated[int, Field(strict=True, ge=0)]


@checked(config=ConfigDict(extra="forbid"))
class _LastMessage:
    sequence: _Count
    digest: _Text
    answered: _Flag


@checked(config=ConfigDict(extra="forbid"))
class _Spent:
    """As :class:`.limits.Spent`."""

    rounds: _Count = 0
    hours: Annotated[float, Field(strict=True, ge=0)] = 0.0
    evaluations: _Count = 0
    gigabytes: Annotated[float, Field(strict=True, ge=0)] = 0.0


@checked(config=ConfigDict(extra="forbid"))
class _Work:
    """How far one kind of work is in a run."""

    step: Annotated[int, Field(strict=True, ge=-1)]
    digest: _Text
    done: _Flag


@checked
class _Run:
    round: _Work
    evaluation: _Work
    full_validation: Annotated[_Work, Field(alias=VALIDATION)]
    personal_model: Annotated[_Work | None, Field(alias=PERSONAL)] = None
    """``None`` in a ledger of before there were personal models."""
    score: _Work | None = None
    """``None`` in a ledger of before there were studies."""
    joined: _Text = ""
    """As of :meth:`Ledger.check_same`."""


@checked
class _Content:
    """What the file holds; it is checked as if it came from elsewhere."""

    message: _LastMessage
    spent: dict[str, _Spent]
    runs: dict[str, _Run]


_CONTENT = TypeAdapter(_Content)


class Ledger:
    """Keeps the site's memory on the disk; every change is there before it counts.

    Parameters
    ----------
    folder
        Private, of this site.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER
        self._answers = KeptAnswers(folder, _KINDS)

    # Which messages were seen

    def take(self, sequence: int, digest: str) -> None:
        """Accept a signed message that is newer than all before.

        The last one is accepted again if its answer did not leave: the site was killed meanwhile.

        Raises
        ------
        SiteError
            If it was answered already, or is older.
        """
        with self._changing() as content:
            last = content["message"]
            if sequence == last["sequence"] and digest == last["digest"] and not last["answered"]:
                return
            if sequence <= last["sequence"]:
                raise SiteError(
                    "refused: the message is not newer than the last one from the coordinator; it "
                    "was sent before, or the clock of the server's machine was set back"
                )
            content["message"] = {"sequence": sequence, "digest": digest, "answered": False}

    def answered(self) -> None:
        """Remember that the answer to the last message has left."""
        with self._changing() as content:
            content["message"]["answered"] = True

    # What was spent

    def spent(self, account: str) -> Spent:
        """Return what the site has given of a dataset over all runs, or to a study."""
        return _spent(self._read(), account)

    def spend(self, accounts: Collection[str], *, hours: float = 0.0, size: int = 0) -> None:
        """Add hours, and bytes that came or left, to what was spent of datasets and studies."""
        with self._changing() as content:
            for name in accounts:
                before = _spent(content, name)
                content["spent"][name] = asdict(before) | {
                    "hours": before.hours + hours,
                    "gigabytes": before.gigabytes + size / 1e9,
                }

    def count_evaluation(self, dataset: str, limits: Limits, site: str) -> None:
        """Count an evaluation of a trained model.

        Raises
        ------
        SiteError
            If nothing is left to give.
        """
        with self._changing() as content:
            spent = _spent(content, dataset)
            limits.check_step(spent, site, is_round=False)
            content["spent"][dataset] = asdict(spent) | {"evaluations": spent.evaluations + 1}

    # How far the site is in a run

    def check_same(self, run: str, joined: str) -> None:
        """Raise ``SiteError`` if a run was joined with something else before.

        Parameters
        ----------
        run
            Identifier of the run.
        joined
            Hash of what may not change while the run goes on; empty if anything may.
        """
        known = self._read()["runs"].get(run, {}).get("joined", "")
        if known and joined and known != joined:
            raise SiteError("refused: this training was joined with other settings before")

    def open_run(self, run: str, folder: Path, joined: str = "") -> None:
        """Begin or continue a run; the answer kept of another run is dropped."""
        with self._changing() as content:
            content["runs"].setdefault(run, {kind: dict(_NOTHING) for kind in _KINDS})
            content["runs"][run] |= {"folder": str(folder), "joined": joined}
        self._answers.drop_others(run)

    def rounds_of(self, proposal: Proposal) -> int:
        """Return how many rounds the site has given to all that a proposal is about."""
        if proposal.study is None:
            return sum(map(self.rounds_done, proposal.run_ids))
        return self.spent(proposal.study.account).rounds

    def rounds_done(self, run: str) -> int:
        """Return how many rounds of a run the site is past."""
        if run not in (runs := self._read()["runs"]):
            return 0
        known = runs[run][ROUND]
        return int(known["step"]) + (1 if known["done"] else 0)

    def is_new(self, question: Question) -> bool:
        """Whether a piece of work was not begun before."""
        known = self._read()["runs"].get(question.run, {}).get(question.kind, _NOTHING)
        return question.step > int(known["step"])

    def begin(
        self,
        question: Question,
        dataset: str,
        limits: Limits,
        site: str,
        account: str | None = None,
    ) -> RecordDict | None:
        """Allow a piece of work and count it, or return the answer given to the same question.

        Work that failed, or during which the site was killed, may be done again: for the same
        question, and without being counted twice. It is counted for the dataset, and for the study
        ``account`` that it belongs to.

        Raises
        ------
        SiteError
            If the site is further on, this step was asked another question before, or nothing is
            left to give.
        """
        with self._changing() as content:
            if question.run not in content["runs"]:
                raise SiteError("refused: the site has not joined this run")
            run = content["runs"][question.run]
            known = run.setdefault(question.kind, dict(_NOTHING))
            if question.is_round and run.get(PERSONAL, _NOTHING)["step"] >= 0:
                raise SiteError(
                    f"refused {question}: the site has made its personal model, so the rounds of "
                    f"this run are over. {_how_to_rewind(question)}"
                )
            if question.step < known["step"]:
                raise SiteError(_further_on(question, known["step"]))
            spent = _spent(content, dataset)
            if question.step > known["step"]:
                limits.check_step(spent, site, is_round=question.is_round)
                _count(content, question, [dataset, account])
                known |= {"step": question.step, "digest": question.digest, "done": False}
                return None
            if question.digest != known["digest"]:
                raise SiteError(
                    f"refused: another question for {question} came before. "
                    + _how_to_rewind(question)
                )
            if not known["done"]:
                limits.check_hours(spent, site)
                return None
        try:
            return self._answers.load(question.kind, asdict(question))
        except AnswerLostError as error:
            raise SiteError(
                f"refused {question}: it was answered, and the answer is not kept. "
                + _how_to_rewind(question)
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"{error}: {_how_to_rewind(question)}") from error

    def finish(self, question: Question, answer: RecordDict) -> None:
        """Keep an answer, then remember that the work is done."""
        self._answers.save(question.kind, asdict(question), answer)
        with self._changing() as content:
            content["runs"][question.run][question.kind]["done"] = True

    def folder_of(self, run: str) -> Path:
        """Return the folder of a run.

        Parameters
        ----------
        run
            Identifier of the run, or at least its first eight characters.

        Raises
        ------
        SettingsError
            If no run or more than one begins so.
        """
        content = self._read()
        return Path(content["runs"][_find_run(content, run)]["folder"])

    def rewind(self, run: str, server_round: int) -> None:
        """Let a run ask for a round again; what was spent stays spent.

        Parameters
        ----------
        run
            Identifier of the run, as :meth:`folder_of` takes it.
        server_round
            The round to be asked for, from 0.

        Raises
        ------
        SettingsError
            If there is no such run, or the site has not come to that round.
        """
        with self._changing() as content:
            everything = content["runs"][_find_run(content, run)]
            known = everything[ROUND]
            # after the rounds also to one that the site has not come to
            further = any(everything.get(kind, _NOTHING)["step"] >= 0 for kind in _AFTER_ROUNDS)
            if not 0 <= server_round <= known["step"] + further:
                raise SettingsError(
                    f"--rewind {run} {server_round + 1}: the site is at {_step(known['step'])} of "
                    "this run; give that round or an earlier one."
                )
            known |= {"step": server_round - 1, "digest": "", "done": True}
            everything |= {kind: dict(_NOTHING) for kind in _AFTER_ROUNDS}
            score = everything.get(SCORE, _NOTHING)
            if score["step"] > server_round:  # those of earlier rungs were told
                everything[SCORE] = {"step": server_round, "digest": "", "done": True}
        self._answers.drop()

    # Files

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        private_folder(self._path.parent)
        with wait_for_turn(self._path.with_suffix(".lock")):
            content = self._read()
            yield content
            write_state(self._path, content, _FORMAT)

    def _read(self) -> dict[str, Any]:
        content = read_state(self._path, _FORMAT, _REMEDY)
        if content is None:
            nothing = {"sequence": 0, "digest": "", "answered": True}
            return {"message": nothing, "spent": {}, "runs": {}}
        try:
            _CONTENT.validate_python(content)
        except ValueError as error:
            raise CheckpointError(f"{self._path} is damaged: {_REMEDY}") from error
        return content


def _find_run(content: dict[str, Any], run: str) -> str:
    found: list[str] = [name for name in content["runs"] if name.startswith(run)]
    if run in found:
        return run
    if len(found) != 1 or len(run) < _SHORTEST_PREFIX:
        known = ", ".join(content["runs"]) or "none"
        raise SettingsError(
            f"--rewind {run[:40]}: give at least {_SHORTEST_PREFIX} characters of one run; known "
            f"are {known}."
        )
    return found[0]


def _spent(content: dict[str, Any], dataset: str) -> Spent:
    return Spent(**content["spent"].get(dataset, {}))


def _count(content: dict[str, Any], question: Question, accounts: Sequence[str | None]) -> None:
    """Count a piece of work for a dataset, and a study if it is one's."""
    counter = "rounds" if question.is_round else "evaluations"
    for name in accounts:
        if name is not None:
            before = _spent(content, name)
            content["spent"][name] = asdict(before) | {counter: getattr(before, counter) + 1}


def _step(step: int) -> str:
    return f"round {step + 1}"


def _further_on(question: Question, step: int) -> str:
    where = _step(step) if question.is_round else f"round {step}"
    return f"refused {question}: the site is at {where} already. " + _how_to_rewind(question)


def _how_to_rewind(question: Question) -> str:
    server_round = str(question.step + 1) if question.is_round else "ROUND"
    return (
        "If the server was restored from a backup, the site's engineer may let it go back: "
        f"nnUNetv2_federated_site --rewind {question.run} {server_round}"
    )
