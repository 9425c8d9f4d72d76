"""``nnUNetv2_train_federated``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_federated.cli.command import Command, Values
from nnunetv2_federated.cli.console import ConsoleObserver, say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.experiment.choices import QueueChoices, TrainChoices
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.privacy import describe_terms

if TYPE_CHECKING:
    from nnunetv2_federated.experiment.train import TrainedModel
    from nnunetv2_federated.federation.run import Run

APP_FOLDER = Path(__file__).parents[1] / "flower" / "app"

DESCRIPTION = """Train nnU-Net across sites. Sites are simulated on this machine, one after another,
or with --server are hospitals on other machines (nnUNetv2_federated_site); the result is a stock
nnU-Net result folder that nnUNetv2_predict uses as it is."""

WITHOUT = ("what to train",)
"""Group of fields that this command takes without flags, and not from a settings file."""


def command() -> Command[TrainChoices]:
    """Return the command line."""
    parser = build_parser(
        TrainChoices,
        "nnUNetv2_train_federated",
        DESCRIPTION,
        usage="%(prog)s DATASET CONFIGURATION FOLD [flags]\n"
        "       %(prog)s DATASET -c CONFIGURATION ... -f FOLD ... [flags]",
        without=WITHOUT,
    )
    parser.add_argument(
        "target",
        nargs="*",
        metavar="DATASET CONFIGURATION FOLD",
        help="dataset id or name, configuration such as 2d or 3d_fullres, and fold (0 to 4, or "
        "all); with --site-datasets, DATASET may be left out; with -c and -f, DATASET alone",
    )
    return Command(TrainChoices, parser, without=WITHOUT, complete=read_target)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: train(command().parse(argv)))


def read_target(values: Values) -> Values:
    """Split the positional arguments into dataset, configuration and fold.

    ``--site-datasets 101 102 2d 0`` swallows what follows it, so its tail counts too. Of several
    trainings the first one's configuration and fold are taken.

    Raises
    ------
    SettingsError
        If there are too few or too many.
    """
    values = dict(values)
    target = list(values.pop("target", []))
    datasets = list(values.get("site_datasets", []))
    if of_queue(values):
        return values | first_of_queue(values) | {"dataset": _alone(target or datasets[:1])}
    if datasets and len(target) < 2 and len(datasets) > 2:
        target += datasets[-2:]
        values["site_datasets"] = datasets = datasets[:-2]
    if datasets and len(target) == 2:
        target.insert(0, datasets[0])
    if len(target) != 3:
        raise SettingsError(
            f"expected DATASET CONFIGURATION FOLD, got {' '.join(map(str, target)) or 'nothing'}; "
            "for example: nnUNetv2_train_federated 501 2d 0"
        )
    return values | dict(zip(("dataset", "configuration", "fold"), target, strict=True))


def _alone(target: Sequence[object]) -> object:
    """Return the dataset of several trainings, beside which nothing is named."""
    if len(target) != 1:
        got = " ".join(map(str, target)) or "nothing"
        raise SettingsError(
            f"expected DATASET alone beside -c and -f, got {got}; for example: "
            "nnUNetv2_train_federated 501 -c 2d -f 0 1 2 3 4"
        )
    return target[0]


def of_queue(values: Values) -> bool:
    """Return whether several trainings are chosen, and both their configurations and folds.

    Raises
    ------
    SettingsError
        If only one of the two is.
    """
    given = {name: values[name] for name in ("configurations", "folds") if name in values}
    return QueueChoices(**given).folds is not None


def first_of_queue(values: Values) -> Values:
    """Return configuration and fold of the first of several trainings."""
    return {"configuration": values["configurations"][0], "fold": values["folds"][0]}


def train(choices: TrainChoices) -> None:
    """Train, validate or prepare what was chosen, and print the result."""
    # heavy: not for --help
    from nnunetv2_federated.experiment import train as experiment  # noqa: PLC0415
    from nnunetv2_federated.experiment.resolve import resolve, server_settings  # noqa: PLC0415

    if choices.folds is not None:
        _train_queue(choices)
        return
    run = resolve(choices)
    if choices.val:
        _say_result(experiment.evaluate(run, best=choices.val_best, npz=choices.npz), choices)
        return
    console = ConsoleObserver(run.settings.rounds, quiet=choices.quiet)
    if choices.prepare_only:
        folder = experiment.prepare_run(
            run, resume=choices.c, observer=console, backend=choices.backend
        )
        _say_command(run, folder)
        return
    stopping = stopping_as_interrupt() if run.remote_sites else contextlib.nullcontext()
    with stopping, console:
        if choices.device is None and run.device == "cpu":
            console.say("no CUDA device found: training on the CPU")
        trained = experiment.train(
            run,
            resume=choices.c,
            observer=console,
            backend=choices.backend,
            server=server_settings(choices) if run.remote_sites else None,
            best=choices.val_best,
            npz=choices.npz,
            until=choices.until_round,
        )
    _say_result(trained, choices)


def _train_queue(choices: TrainChoices) -> None:
    """Train or validate several folds and configurations, and print the results."""
    from nnunetv2_federated.experiment import train_queue as experiment  # noqa: PLC0415
    from nnunetv2_federated.experiment.queue import resolve_queue  # noqa: PLC0415
    from nnunetv2_federated.experiment.resolve import server_settings  # noqa: PLC0415

    trainings = resolve_queue(choices)
    run = trainings[0].run
    console = ConsoleObserver(run.settings.rounds, quiet=choices.quiet)
    how = experiment.HowToTrain(
        observer=console,
        backend=choices.backend,
        server=server_settings(choices) if run.remote_sites else None,
        best=choices.val_best,
        npz=choices.npz,
        parallel=choices.parallel,
    )
    if choices.val:
        models = experiment.evaluate_queue(trainings, how)
    else:
        stopping = stopping_as_interrupt() if run.remote_sites else contextlib.nullcontext()
        with stopping, console:
            models = experiment.train_queue(trainings, how)
    for model in models:
        if not choices.quiet:
            say(f"{model.run.configuration}, fold {model.run.fold}:")
        _say_result(model, choices)


def _say_command(run: Run, folder: Path) -> None:
    print(
        f"flwr run {APP_FOLDER} local --stream --run-config 'run-folder=\"{folder}\"' "
        f"--federation-config 'num-supernodes={len(run.sites)} client-resources-num-cpus=1'"
    )


def _say_result(trained: TrainedModel, choices: TrainChoices) -> None:
    if choices.quiet:
        return
    if trained.headline is not None:
        metric, value = trained.headline
        say(f"validation {metric} of the global model (full validation): {value:.4f}")
    if trained.run.settings.private:
        for name, site in trained.history.sites.items():
            if site.privacy is not None:
                say(describe_terms(name, site.privacy))
    print(f"result: {trained.folder}")


if __name__ == "__main__":
    main()
