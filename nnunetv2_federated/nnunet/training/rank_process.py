"""One of the processes that train a site on several GPUs: it does what it is asked to, in step."""

from __future__ import annotations

import os
import signal
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]  # documented

from nnunetv2_federated.federation import errors
from nnunetv2_federated.federation.children import end_with_parent
from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.device import choose_device, limit_gpu_memory
from nnunetv2_federated.nnunet.process import prepare_process
from nnunetv2_federated.nnunet.training.site import Site

DONE, FAILED, END = "done", "failed", "end"
"""First of what a rank says: it has done what it was asked, or cannot; or is asked: to end."""
_PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others: compiling, or the first look at the images, takes long."""
_LOOPBACK = "lo"


@dataclass(frozen=True)
class GroupSettings:
    """What all ranks of a group know."""

    run: str
    """The run, as JSON."""
    index: int
    """Position of the site in ``sites`` of the run."""
    folder: Path
    """Folder of the run."""
    meeting: Path
    """Private folder of the group, in which the ranks find each other."""
    size: int
    """Number of ranks."""
    max_gpu_gb: float | None
    """Memory of a GPU that a rank may take."""


@dataclass(frozen=True)
class Failure:
    """What went wrong in a rank."""

    error: FederationError | OSError | None
    """The error itself, if its text may be passed on as it is."""
    text: str
    """Type and text of the error, in one line."""
    trace: str


@dataclass(frozen=True)
class Facts:
    """What is known of a site once it is built."""

    lrs: tuple[float, ...]
    val_iterations: int | None


class _Telling(Observer):
    """Passes the progress of a site on to who started the group."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def site_started(self, site: str, iterations: int) -> None:
        self._connection.send(("site_started", (site, iterations)))

    def iteration_done(self) -> None:
        self._connection.send(("iteration_done", ()))


def work(settings: GroupSettings, rank: int, connection: Connection) -> None:
    """Build the site with the other ranks, and do what is asked until the end.

    Parameters
    ----------
    settings
        Settings of the group.
    rank
        Number of this process, from 0.
    connection
        Pipe to who started the group. It brings a name of a method of :class:`.Site` with its
        arguments, and takes what rank 0's returns, its progress, or a failure.
    """
    end_with_parent()
    # Ctrl-C in a terminal reaches all its processes: who started the group ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        site = _build(settings, rank, connection)
        connection.send((DONE, Facts(site.lrs, site.val_iterations)))
        while (asked := connection.recv())[0] != END:
            answer = getattr(site, asked[0])(*asked[1])
            connection.send((DONE, answer if rank == 0 else None))
        site.close()
        connection.send((DONE, None))
        distributed.destroy_process_group()
    except EOFError:
        return
    except BaseException as error:  # noqa: BLE001  # it is raised where the group was started
        connection.send((FAILED, _failure(error)))
        _wait_for_the_end(connection)


def _build(settings: GroupSettings, rank: int, connection: Connection) -> Site:
    prepare_process()
    run = Run.from_json(settings.run)
    device = choose_device(run.device)
    if device == "cuda":
        torch.cuda.set_device(rank)
        limit_gpu_memory(settings.max_gpu_gb, rank)
    _join(settings, rank, "nccl" if device == "cuda" else "gloo")
    observer = _Telling(connection) if rank == 0 else Observer()
    output = None if rank == 0 else settings.meeting / f"rank_{rank}"
    return Site(run, settings.index, settings.folder, observer, output=output)


def _join(settings: GroupSettings, rank: int, backend: str) -> None:
    """Meet the other ranks, through a file that no other user of the machine can open.

    A port, as nnU-Net's own, would let in whoever reaches it first. What gradients pass through is
    bound to the loopback interface.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, _LOOPBACK)
    distributed.init_process_group(
        backend,
        store=FileStore(str(settings.meeting / "ranks"), settings.size),
        rank=rank,
        world_size=settings.size,
        timeout=_PATIENCE,
    )


def _failure(error: BaseException) -> Failure:
    text = clean(f"{type(error).__name__}: {error}")
    return Failure(_passed_on(error), text, traceback.format_exc())


def _passed_on(error: BaseException) -> FederationError | OSError | None:
    """Return an error that another process can read: with arguments of its class's own."""
    if isinstance(error, FederationError):
        own = (kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        known: type[FederationError] = next(own)
        return known(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return None


def _wait_for_the_end(connection: Connection) -> None:
    """Stay, so that the other ranks fail by nothing else before the group is ended."""
    try:
        while True:
            connection.recv()
    except (EOFError, OSError):
        return
