"""``nnUNetv2_train_federated``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.console import ConsoleObserver, say
from nnunetv2_federated.cli.options import fold_number, parse, run_command
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.cli.train_flags import build_parser
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.experiment.process import prepare_process
from nnunetv2_federated.experiment.resolve import build_run, server_settings
from nnunetv2_federated.experiment.train import TrainedModel, prepare_run, validate
from nnunetv2_federated.experiment.train import train as start
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.device import choose_device

APP_FOLDER = Path(__file__).parents[1] / "flower" / "app"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: train(parse(parser, argv)))


def read_target(options: Options) -> tuple[str | None, str, int | str]:
    """Split the positional arguments into dataset, configuration and fold.

    ``--site-datasets 101 102 2d 0`` swallows what follows it, so its tail counts too.

    Raises
    ------
    SettingsError
        If there are too few or too many.
    """
    target = list(options.get("target", []))
    datasets = options.get("site_datasets")
    if datasets and len(target) < 2 and len(datasets) > 2:
        target += datasets[-2:]
        options["site_datasets"] = datasets[:-2]
    if datasets and len(target) == 2:
        target.insert(0, options["site_datasets"][0])
    if len(target) != 3:
        raise SettingsError(
            f"expected DATASET CONFIGURATION FOLD, got {' '.join(target) or 'nothing'}; "
            "for example: nnUNetv2_train_federated 501 2d 0"
        )
    return target[0], target[1], fold_number(target[2])


def train(options: Options) -> None:
    """Train as the flags say."""
    prepare_process()
    dataset, configuration, fold = read_target(options)
    if options.get("c") and options.get("val"):
        raise SettingsError("--c --val: continue the training, or only validate; not both.")
    if options.get("val_best") and options.get("disable_checkpointing"):
        raise SettingsError("--val_best needs checkpoints: leave --disable_checkpointing out.")
    device = choose_device(options.get("device"))
    run = build_run(options, dataset, configuration, fold, device)
    best, npz = bool(options.get("val_best")), bool(options.get("npz"))
    if options.get("val"):
        _say_result(validate(run, best=best, npz=npz), options)
        return
    backend, resume = options.get("backend", "in-process"), bool(options.get("c"))
    console = ConsoleObserver(run.settings.rounds, quiet=bool(options.get("quiet")))
    if options.get("prepare_only"):
        _say_command(run, prepare_run(run, resume=resume, observer=console, backend=backend))
        return
    server = server_settings(options) if run.remote_sites else None
    stopping = stopping_as_interrupt() if run.remote_sites else contextlib.nullcontext()
    with stopping, console:
        if "device" not in options and run.device == "cpu":
            console.say("no CUDA device found: training on the CPU")
        trained = start(
            run,
            resume=resume,
            observer=console,
            backend=backend,
            server=server,
            best=best,
            npz=npz,
        )
    _say_result(trained, options)


def _say_command(run: Run, folder: Path) -> None:
    print(
        f"flwr run {APP_FOLDER} local --stream --run-config 'run-folder=\"{folder}\"' "
        f"--federation-config 'num-supernodes={len(run.sites)} client-resources-num-cpus=1'"
    )


def _say_result(trained: TrainedModel, options: Options) -> None:
    if options.get("quiet"):
        return
    if trained.headline is not None:
        metric, value = trained.headline
        say(f"validation {metric} of the global model (full validation): {value:.4f}")
    print(f"result: {trained.folder}")


if __name__ == "__main__":
    main()
