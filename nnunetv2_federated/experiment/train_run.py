"""Train the run that a folder's ``run.json`` holds: ``python -m ... FOLDER``.

A comparison starts each of its trainings so, in a process of its own. A run that was begun before
is continued. What happens is logged to stdout, a line a round.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.federation.children import end_workers_with_command
from nnunetv2_federated.federation.errors import CheckpointError, FederationError, SettingsError
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import RUN_FILE, Run, read_run
from nnunetv2_federated.federation.text import one_line

# as in the package of the commands: a worker, which imports this module, ends with the training
end_workers_with_command()

logger = logging.getLogger(__name__)

_LONGEST_LINE = 4000


class LogObserver(Observer):
    """Logs notes, and a line a round."""

    def __init__(self) -> None:
        self._num_rounds = 0

    def run_prepared(self, run: Run, folder: Path) -> None:
        """Send what Flower logs into ``federation.log`` from here on."""
        del run
        flower = logging.getLogger("flwr")
        flower.handlers[:] = [logging.FileHandler(folder.parent / "federation.log")]
        flower.propagate = False

    def say(self, text: str) -> None:
        """Log a line."""
        logger.info("%s", one_line(text, _LONGEST_LINE))

    def note(self, text: str) -> None:
        """Log a line the user should know."""
        self.say(f"note: {text}")

    def run_started(self, rounds_done: int, num_rounds: int) -> None:
        """Log where a run starts or continues."""
        self._num_rounds = num_rounds
        if rounds_done:
            self.say(f"continuing after round {rounds_done} of {num_rounds}")

    def round_finished(self, record: RoundRecord) -> None:
        """Log how a round went."""
        failed = f", failed: {', '.join(record.failed)}" if record.failed else ""
        self.say(
            f"round {record.round + 1}/{self._num_rounds}: train loss {record.train_loss:.4f}, "
            f"validation loss {record.loss:.4f}, {record.seconds.round:.1f} s{failed}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit status."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # a library's, to its developers
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    (folder,) = sys.argv[1:] if argv is None else argv
    # a worker, which imports this module, needs none of these
    from nnunetv2_federated.experiment.train import train  # noqa: PLC0415
    from nnunetv2_federated.nnunet.process import prepare_process  # noqa: PLC0415
    from nnunetv2_federated.nnunet.training.result_folder import federation_folder  # noqa: PLC0415

    try:
        prepare_process()
        run = read_run(Path(folder))
        begun = (federation_folder(run) / RUN_FILE).is_file()
        train(run, resume=begun, observer=LogObserver())
    except FederationError as error:
        logger.error("error: %s", one_line(str(error), _LONGEST_LINE))  # noqa: TRY400  # one line
        return 2 if isinstance(error, SettingsError | CheckpointError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
