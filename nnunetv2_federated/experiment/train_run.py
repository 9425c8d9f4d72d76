"""Train the run that a folder's ``run.json`` holds: ``python -m ... FOLDER``.

A comparison starts each of its trainings so, in a process of its own, a queue those that it trains
at the same time, and a tuning its trials. A run that was begun before is continued, unless
``--anew`` is given. What happens is logged to stdout, a line a round.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.experiment.line_observer import LineObserver
from nnunetv2_federated.federation.children import end_workers_with_command
from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.federation.failure import explain
from nnunetv2_federated.federation.logs import LONGEST_LINE
from nnunetv2_federated.federation.run import RUN_FILE, read_run
from nnunetv2_federated.federation.text import one_line

# as in the package of the commands: a worker, which imports this module, ends with the training
end_workers_with_command()

logger = logging.getLogger(__name__)


def _log(text: str) -> None:
    logger.info("%s", one_line(text, LONGEST_LINE))


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit status."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # a library's, to its developers
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for flag in ("--anew", "--best", "--npz"):
        parser.add_argument(flag, action="store_true")
    # of a trial of a tuning
    for flag in ("--until-round", "--score-iterations"):
        parser.add_argument(flag, type=int)
    asked = parser.parse_args(argv)
    # a worker, which imports this module, needs none of these
    from nnunetv2_federated.experiment.train import train  # noqa: PLC0415
    from nnunetv2_federated.experiment.train_trial import train_to_rung  # noqa: PLC0415
    from nnunetv2_federated.nnunet.process import prepare_process  # noqa: PLC0415
    from nnunetv2_federated.nnunet.training.result_folder import federation_folder  # noqa: PLC0415

    try:
        prepare_process()
        run = read_run(asked.folder)
        begun = (federation_folder(run) / RUN_FILE).is_file() and not asked.anew
        observer = LineObserver(_log)
        if asked.score_iterations is None:
            train(run, resume=begun, observer=observer, best=asked.best, npz=asked.npz)
        else:
            train_to_rung(
                run,
                asked.folder,
                asked.until_round,
                asked.score_iterations,
                resume=begun,
                observer=observer,
            )
    except (FederationError, OSError) as error:
        failure = explain(error)
        if failure is None:
            raise
        logger.error("error: %s", failure.line)  # noqa: TRY400  # one line
        return failure.status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
