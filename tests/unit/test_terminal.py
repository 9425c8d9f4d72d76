"""How a command ends that is told to stop."""

from __future__ import annotations

import multiprocessing
import signal

from nnunetv2_federated.cli.terminal import stopping_as_interrupt


def test_a_worker_forked_by_a_command_ends_when_its_pool_says_so() -> None:
    with stopping_as_interrupt():
        assert callable(signal.getsignal(signal.SIGTERM))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(signal.getsignal, (signal.SIGTERM,)) == signal.SIG_DFL
