"""What several commands do with the machine they run on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import torch

from nnunetv2_federated.federation.errors import SettingsError


@contextlib.contextmanager
def stopping_as_interrupt() -> Iterator[None]:
    """Let a service manager's SIGTERM end a command as Ctrl-C does.

    It ends workers forked within as ever: a handler of Python's would never run in one that waits
    for work, and the pool that ends it would wait for ever.
    """

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    def undo_in_child() -> None:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=undo_in_child)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def choose_device(wanted: str | None) -> str:
    """Return the device to train on, and set torch's threads as nnU-Net does.

    Raises
    ------
    SettingsError
        If the wanted device is absent.
    """
    if wanted not in (None, "cpu", "cuda", "mps"):
        raise SettingsError(f"-device {wanted}: must be cuda, cpu or mps.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError("-device cuda: no CUDA device found; use -device cpu.")
    device = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    torch.set_num_threads(1 if device == "cuda" else threads)
    torch.backends.cudnn.benchmark = device == "cuda"
    return device
