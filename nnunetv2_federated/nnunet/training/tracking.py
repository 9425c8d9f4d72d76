"""Trackers of the global model, loggers beside nnU-Net's own: W&B, TensorBoard and MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import WandbLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.history import leaves
from nnunetv2_federated.nnunet.environment import environment

logger = logging.getLogger(__name__)

MEMORY_FILE = "tracking.json"
"""File in the run's folder with its trackers, and what each needs to continue after ``--c``."""

_TIMESTAMPS = ("epoch_start_timestamps", "epoch_end_timestamps")
"""Keys that nnU-Net logs and trackers do not need: their points have a time of their own."""

_LOCAL = {
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_BATCH = {"metrics": 1000, "params": 100}
"""Largest number of items that MLflow takes at once."""
_PARAM_LENGTH = 6000


def stay_local() -> None:
    """Turn off what trackers send to their makers by default, unless the user has set it."""
    for variable, value in _LOCAL.items():
        os.environ.setdefault(variable, value)


def untracked() -> contextlib.AbstractContextManager[None]:
    """Let nnU-Net build a trainer without the W&B run that its logger would start."""
    return environment(nnUNet_wandb_enabled="0")


class Tracker:
    """A logger for nnU-Net's ``MetaLogger`` whose run can be continued and ended."""

    place = ""
    """Where the user finds the run: a folder or an address."""
    finished = False
    """Whether all rounds are done; set before the tracker is closed."""

    def memory(self) -> str:
        """Return what is needed to continue the run after ``--c``."""
        return ""

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Log the settings of the run."""
        raise NotImplementedError

    def log(self, key: str, value: float, step: int) -> None:
        """Log one metric of one round."""
        raise NotImplementedError

    def log_summary(self, key: str, value: float) -> None:
        """Log one metric of the whole run."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write all that was logged; called when a round is complete."""

    def close(self) -> None:
        """End the run."""


class WandbTracker(WandbLogger, Tracker):
    """nnU-Net's W&B logger; offline unless ``nnUNet_wandb_mode`` or ``WANDB_MODE`` says more."""

    def __init__(self, folder: Path, title: str, memory: str | None, step: int) -> None:
        import wandb  # noqa: PLC0415  # only with the extra

        del step  # W&B knows it
        chosen = (os.environ.get(name) for name in ("nnUNet_wandb_mode", "WANDB_MODE"))
        mode = next(filter(None, chosen), "offline")
        os.environ.setdefault(
            "WANDB_REINIT", "create_new"
        )  # a new run, not that of an earlier training
        if mode == "offline":
            os.environ.setdefault("WANDB_SILENT", "true")
        try:
            with environment(nnUNet_wandb_mode=mode):
                super().__init__(str(folder), memory is not None)
        except (wandb.Error, OSError, ValueError, StopIteration) as error:
            raise SettingsError(f"nnUNet_wandb_enabled, mode {mode}: {error}") from error
        self.run.name = title
        self.place = f"{folder / 'wandb'} ({mode})"

    def close(self) -> None:
        """End the run."""
        self.run.finish(exit_code=int(not self.finished))


class TensorBoardTracker(Tracker):
    """Event files in ``tensorboard`` beside the checkpoints."""

    def __init__(self, folder: Path, title: str, memory: str | None, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # only with the extra

        del title
        path = folder / "tensorboard"
        if memory is None:
            shutil.rmtree(path, ignore_errors=True)
        self._step = step
        self._writer = SummaryWriter(str(path), purge_step=None if memory is None else step)
        self.place = str(path)

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Write the settings as text, at step -1, which a resumed run does not purge."""
        text = json.dumps(config, indent=1, default=str)
        self._writer.add_text("config", f"```json\n{text}\n```", global_step=-1)

    def log(self, key: str, value: float, step: int) -> None:
        """Write a point."""
        if key not in _TIMESTAMPS:
            self._step = step
            self._writer.add_scalar(key, value, step)

    def log_summary(self, key: str, value: float) -> None:
        """Write a point at the last round."""
        self.log(key, value, self._step)

    def flush(self) -> None:
        """Write what was logged."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflowTracker(Tracker):
    """A run in ``MLFLOW_TRACKING_URI``, or in ``mlflow.db`` in nnU-Net's results folder.

    The metrics of a round are sent in one transaction. If the store cannot be reached they are kept
    for the next round: a training does not end because its tracker is away.
    """

    def __init__(self, folder: Path, title: str, memory: str | None, step: int) -> None:
        from mlflow import MlflowClient, MlflowException  # noqa: PLC0415  # only with the extra

        del step  # the store knows it
        results = folder.parents[2]  # nnUNet_results/Dataset/Trainer__Plans__configuration/fold_X
        self.place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results / 'mlflow.db'}"
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._error = MlflowException
        self._points: list[Any] = []
        self._step = self._stored = -1
        with self._refusing():
            self._client = MlflowClient(tracking_uri=self.place)
            if memory is None:
                experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "nnunet")
                created = self._client.create_run(self._experiment(experiment), run_name=title)
                self._run: str = created.info.run_id
            else:
                self._run = memory
                self._client.update_run(memory, status="RUNNING")
                past = self._client.get_metric_history(memory, "train_losses")
                self._stored = max((point.step for point in past), default=-1)

    def _experiment(self, name: str) -> str:
        with contextlib.suppress(self._error):  # it exists, perhaps made by another run just now
            return str(self._client.create_experiment(name))
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            raise SettingsError(f"nnUNet_mlflow_enabled: {self.place} has no experiment {name}.")
        return str(experiment.experiment_id)

    def memory(self) -> str:
        """Return the run's id."""
        return self._run

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Write the settings as parameters."""
        from mlflow.entities import Param  # noqa: PLC0415

        params = [Param(_allowed(k), str(v)[:_PARAM_LENGTH]) for k, v in leaves(config)]
        with self._refusing():
            self._send("params", params)

    def log(self, key: str, value: float, step: int) -> None:
        """Keep a metric until the round is complete, unless the run has it already."""
        self._step = step
        if step > self._stored and key not in _TIMESTAMPS:
            self._keep(key, value)

    def log_summary(self, key: str, value: float) -> None:
        """Keep a metric at the last round."""
        self._keep(key, value)

    def _keep(self, key: str, value: float) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        self._points.append(Metric(_allowed(key), float(value), now, max(self._step, 0)))

    def flush(self) -> None:
        """Send the metrics that are kept."""
        with self._warning():
            self._send("metrics", self._points)

    def close(self) -> None:
        """End the run."""
        with self._warning():
            self._send("metrics", self._points)
            self._client.set_terminated(self._run, "FINISHED" if self.finished else "FAILED")

    def _send(self, kind: str, items: list[Any]) -> None:
        while items:
            self._client.log_batch(self._run, **{kind: items[: _BATCH[kind]]})
            del items[: _BATCH[kind]]

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise SettingsError(f"nnUNet_mlflow_enabled, {self.place}: {error}") from error

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            logger.warning("MLflow, %s: %s", self.place, error)


def _allowed(key: str) -> str:
    """Replace each character that MLflow does not allow in a key by its code: ``$`` by ``-24-``."""
    return re.sub(r"[^/\w.: -]", lambda match: f"-{ord(match[0]):x}-", key)


TRACKERS: dict[str, type[WandbTracker | TensorBoardTracker | MLflowTracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "mlflow": MLflowTracker,
}
"""Trackers by the name of their package and extra, as in ``nnUNet_<name>_enabled``."""


def wanted_trackers() -> list[str]:
    """Return the names of the trackers that are switched on.

    Raises
    ------
    SettingsError
        If a switch is neither 0 nor 1, or a package is missing.
    """
    enabled = []
    for name in TRACKERS:
        switch = f"nnUNet_{name}_enabled"
        value = os.environ.get(switch, "0")
        if value not in ("0", "False", "false", "1", "True", "true"):
            raise SettingsError(f"{switch}={value}: must be 0 or 1.")
        if value in ("0", "False", "false"):
            continue
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder of that name has no origin
            raise SettingsError(
                f'{switch}={value} needs {name}: pip install "nnunetv2-federated[{name}]", or '
                f"unset {switch}."
            )
        enabled.append(name)
    return enabled


def open_trackers(folder: Path, title: str, config: Mapping[str, Any], step: int) -> list[Tracker]:
    """Start or continue the runs of the trackers that are switched on.

    Parameters
    ----------
    folder
        nnU-Net's result folder of the fold; its ``federation`` says whether a run is continued.
    title
        Name of the run for its user.
    config
        Settings, logged if the run is new.
    step
        First step that will be logged.

    Raises
    ------
    SettingsError
        If a tracker cannot be started.
    """
    stay_local()
    path = folder / "federation" / MEMORY_FILE
    memory: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    trackers: list[Tracker] = []
    for name in wanted_trackers():
        tracker = TRACKERS[name](folder, title, memory.get(name), step)
        trackers.append(tracker)
        if name not in memory:
            tracker.update_config(config)
            memory[name] = tracker.memory()
            write_atomically(path, json.dumps(memory))
    return trackers


def trackers_of(trainer: nnUNetTrainer) -> list[Tracker]:
    """Return the trackers among a trainer's loggers."""
    return [item for item in trainer.logger.loggers if isinstance(item, Tracker)]


def close_trackers(trainer: nnUNetTrainer) -> None:
    """End the runs that follow a trainer; its own loggers stay."""
    for tracker in trackers_of(trainer):
        trainer.logger.loggers.remove(tracker)
        tracker.close()
