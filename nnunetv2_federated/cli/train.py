"""``nnUNetv2_train_federated``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.console import ConsoleObserver, say, send_logs_to
from nnunetv2_federated.cli.options import fold_number, parse, run_command
from nnunetv2_federated.cli.terminal import choose_device, stopping_as_interrupt
from nnunetv2_federated.cli.train_flags import build_parser
from nnunetv2_federated.cli.trainer_folder import use_trainer_folder
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.experiment.resolve import build_run, server_settings
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.deployment.server.serve import check_credentials, serve_run
from nnunetv2_federated.flower.launch import check, launch, prepare
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.validation import validate
from nnunetv2_federated.nnunet.summary import read_headline
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.result_folder import (
    has_previous,
    one_run,
    put_back,
    result_folder,
    way_back,
)
from nnunetv2_federated.nnunet.training.tracking import close_trackers, stay_local
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

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
    use_trainer_folder()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    stay_local()
    dataset, configuration, fold = read_target(options)
    if options.get("c") and options.get("val"):
        raise SettingsError("--c --val: continue the training, or only validate; not both.")
    if options.get("val_best") and options.get("disable_checkpointing"):
        raise SettingsError("--val_best needs checkpoints: leave --disable_checkpointing out.")
    device = choose_device(options.get("device"))
    run = build_run(options, dataset, configuration, fold, device)
    if options.get("val") and run.remote_sites:
        raise SettingsError("--val with --server: the cases are at the sites; use --c.")
    folder = result_folder(run)
    if options.get("val"):
        checkpoint = folder / "checkpoint_final.pth"
        if not checkpoint.is_file():
            raise SettingsError(f"--val: {checkpoint} does not exist; train first, without --val.")
        check_stages(run)
        with one_run(folder):
            _validate(run, options, GlobalModel(run))
        return
    if not options.get("c"):  # it removes nothing, and the run was looked at when it began
        for line in check(run, options.get("backend", "in-process")):
            print(f"note: {line}", file=sys.stderr)
    if run.remote_sites:
        check_credentials(server_settings(options), run.remote_sites)
    with one_run(folder):
        _start(run, options)


def _start(run: Run, options: Options) -> None:
    """Train in a folder that is ours, and leave it as it was if that is refused."""
    folder = prepare(run, resume=bool(options.get("c")))
    if has_previous(folder) and not options.get("c"):
        print(
            f"the earlier run is kept until the first round of this one is saved; to go back "
            f"before that: {way_back(folder)}",
            file=sys.stderr,
        )
    if options.get("prepare_only"):
        print(
            f"flwr run {APP_FOLDER} local --stream --run-config 'run-folder=\"{folder}\"' "
            f"--federation-config 'num-supernodes={len(run.sites)} client-resources-num-cpus=1'"
        )
        return
    with contextlib.ExitStack() as done:
        try:
            with quiet():
                trainer = build_trainer(run, load_dataset(run.dataset, run.plans_name))
            done.callback(close_trackers, trainer)
            _run(run, folder, options, trainer)
        except SettingsError:
            put_back(folder)
            raise


def _run(run: Run, folder: Path, options: Options, trainer: FederatedRounds) -> None:
    send_logs_to(folder.parent / "federation.log")
    with ConsoleObserver(run.settings.rounds, quiet=bool(options.get("quiet"))) as console:
        console.say(
            f"{run.dataset} {run.configuration} fold {run.fold}: {len(run.site_names)} sites"
        )
        for site in run.sites:
            console.say(
                f"  {site.name}: {len(site.training_cases)} training, "
                f"{len(site.validation_cases)} validation cases"
            )
        if "device" not in options and run.device == "cpu":
            console.say("no CUDA device found: training on the CPU")
        if run.remote_sites:
            with stopping_as_interrupt():
                serve_run(run, folder, server_settings(options), console, trainer)
        else:
            backend = options.get("backend", "in-process")
            launch(run, folder, backend=backend, observer=console, trainer=trainer)
    if run.remote_sites:  # the sites have validated
        _say_result(folder.parent, options)
    else:
        _validate(run, options, GlobalModel(run, trainer))


def _validate(run: Run, options: Options, model: GlobalModel) -> None:
    metric, value = validate(
        run, model, best=bool(options.get("val_best")), npz=bool(options.get("npz"))
    )
    if not options.get("quiet"):
        say(f"validation {metric} of the global model (full validation): {value:.4f}")
        print(f"result: {model.folder}")


def _say_result(folder: Path, options: Options) -> None:
    if options.get("quiet"):
        return
    if (folder / "validation" / "summary.json").is_file():
        metric, value = read_headline(folder)
        say(f"validation {metric} of the global model (full validation): {value:.4f}")
    print(f"result: {folder}")


if __name__ == "__main__":
    main()
