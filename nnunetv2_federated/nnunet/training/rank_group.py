"""Processes that train a site in step, as the process sees them that started them.

They are children of this one, which talks to them through pipes and takes no part in the
computation. So whatever happens to one of them, or keeps them waiting for each other, is ended
here: all are killed.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import tempfile
from collections.abc import Sequence
from multiprocessing import connection, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.training.rank_process import (
    DONE,
    END,
    FAILED,
    Failure,
    GroupSettings,
    work,
)

_TO_END = 20.0
"""Seconds in which a rank that is asked to end stops its workers, or is killed."""
_TO_DIE = 2.0
"""Seconds in which a process is gone that has nothing more to do, or was killed."""


class RankGroup:
    """Processes that do the same things at the same time.

    Parameters
    ----------
    run
        Run of the federation, whose ``num_gpus`` is the number of processes.
    index
        Position of the site in ``run.sites``.
    folder
        Folder of the run.
    observer
        Receives the progress of rank 0; what it raises ends the group.
    max_gpu_gb
        Memory that each may take of its GPU; ``None`` for all.
    """

    def __init__(
        self, run: Run, index: int, folder: Path, observer: Observer, max_gpu_gb: float | None
    ) -> None:
        self._site = run.sites[index].name
        self._observer = observer
        self._meeting = Path(tempfile.mkdtemp(prefix="nnunetv2-federated-"))
        settings = GroupSettings(
            run.to_json(), index, folder, self._meeting, run.num_gpus, max_gpu_gb
        )
        self._ranks: list[BaseProcess] = []
        self._pipes: list[connection.Connection] = []
        # a process that ends waits for its children first, and these wait for it
        self._at_exit = util.Finalize(self, _kill, (self._ranks, self._meeting), exitpriority=100)
        try:
            for rank in range(run.num_gpus):
                self._start(settings, rank)
        except BaseException:
            self.kill()
            raise

    def _start(self, settings: GroupSettings, rank: int) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        name = f"{self._site}, rank {rank} of {settings.size}"
        # not a daemon: nnU-Net's augmentation workers are children of it
        process = context.Process(target=work, args=(settings, rank, there), name=name)
        process.start()
        there.close()
        self._ranks.append(process)
        self._pipes.append(here)

    def ask(self, name: str, *arguments: object) -> Any:  # noqa: ANN401  # of any method
        """Let each rank call a method of its site; return what rank 0's returns.

        Raises
        ------
        SiteError
            If a rank has ended. Whatever is raised, the group has ended then.
        """
        try:
            for rank, pipe in enumerate(self._pipes):
                try:
                    pipe.send((name, arguments))
                except OSError as error:
                    raise self._ended(rank) from error
            return self.answer()
        except BaseException:
            self.kill()
            raise

    def answer(self) -> Any:  # noqa: ANN401  # of any method
        """Wait until each rank has done what it does; return what rank 0 answers."""
        answers: dict[int, object] = {}
        try:
            while len(answers) < len(self._ranks):
                self._look(answers)
        except BaseException:
            self.kill()
            raise
        return answers[0]

    def _look(self, answers: dict[int, object]) -> None:
        """Wait for anything of any rank, and take it."""
        sentinels = {process.sentinel: rank for rank, process in enumerate(self._ranks)}
        ready = connection.wait([*self._pipes, *sentinels])
        for rank, pipe in enumerate(self._pipes):
            if pipe in ready:
                self._take(rank, pipe, answers)
        for sentinel, rank in sentinels.items():
            if sentinel in ready and not self._pipes[rank].poll():
                raise self._ended(rank)

    def _take(self, rank: int, pipe: connection.Connection, answers: dict[int, object]) -> None:
        try:
            kind, content = pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended(rank) from error
        if kind == DONE:
            answers[rank] = content
        elif kind == FAILED:
            raise self._failed(rank, content)
        else:
            getattr(self._observer, kind)(*content)

    def _failed(self, rank: int, failure: Failure) -> Exception:
        """Return the error of a rank, or the end of another that it has noticed."""
        error = failure.error or self._end_noticed() or RuntimeError(failure.text)
        error.add_note(f"{self._ranks[rank].name}:\n{failure.trace}")  # for a log
        return error

    def _end_noticed(self) -> SiteError | None:
        for rank, process in enumerate(self._ranks):
            if connection.wait([process.sentinel], timeout=_TO_DIE / len(self._ranks)):
                return self._ended(rank)
        return None

    def _ended(self, rank: int) -> SiteError:
        process = self._ranks[rank]
        process.join(_TO_DIE)
        status = process.exitcode or 0
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        error = SiteError(
            f"site {self._site}: one of the processes that train it on several GPUs has ended "
            f"({how}); its last round was not trained, and can be asked for again"
        )
        error.add_note(f"{process.name} has ended")
        return error

    @property
    def pids(self) -> Sequence[int | None]:
        """Identifiers of the processes, by rank."""
        return [process.pid for process in self._ranks]

    def close(self) -> None:
        """Let the ranks end, and end those that do not."""
        for pipe in self._pipes:
            try:
                pipe.send((END, ()))
            except OSError:  # it has ended already
                continue
        for pipe in self._pipes:
            pipe.poll(_TO_END)  # until it has stopped its workers, or has ended
        for process in self._ranks:
            process.join(_TO_DIE)
        self.kill()

    def kill(self) -> None:
        """End the ranks at once."""
        self._at_exit()
        for pipe in self._pipes:
            pipe.close()


def _kill(ranks: Sequence[BaseProcess], meeting: Path) -> None:
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join(_TO_END)
    shutil.rmtree(meeting, ignore_errors=True)
