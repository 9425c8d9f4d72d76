"""``nnUNetv2_federated_compare``: local, federated and centralised side by side."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_results

from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.options import add_partition_flags, fold_number, parse, run_command
from nnunetv2_federated.cli.train_flags import add_federation_flags, add_nnunet_flags
from nnunetv2_federated.experiment.comparison import Comparison, open_comparison
from nnunetv2_federated.experiment.comparison_models import run_models
from nnunetv2_federated.experiment.comparison_plan import build_comparison
from nnunetv2_federated.experiment.comparison_report import write_report
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.experiment.process import prepare_process
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.settings import STRATEGIES
from nnunetv2_federated.nnunet.data.dataset import check_environment
from nnunetv2_federated.nnunet.device import choose_device

DESCRIPTION = """Train each site alone, the federation, and one model on all cases, with the same
steps, seeds and data; test every model at every site; write report.html, report.md and PNGs. May be
killed at any time: the same command continues."""

KINDS = ("local", "federated", "centralised")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; flags of a training are those of nnUNetv2_train_federated."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_compare",
        usage="%(prog)s DATASET CONFIGURATION FOLD [FOLD ...] [flags]",
        description=DESCRIPTION,
    )
    parser.add_argument("target", nargs="*", metavar="DATASET CONFIGURATION FOLD [FOLD ...]")
    add = parser.add_argument_group("comparison").add_argument
    add("-o", dest="output", type=Path, metavar="FOLDER", help="default: below nnUNet_results")
    add("--arms", nargs="+", choices=KINDS, help="default: all three")
    add("--strategies", nargs="+", choices=STRATEGIES, help="one federated arm each (fedavg)")
    add("--seeds", nargs="+", type=int, metavar="N", help="train each arm with each (12345)")
    add(
        "--partition-by-seed",
        action="store_true",
        default=None,
        help="deal the cases anew for each seed: trials with different partitions",
    )
    add(
        "--external-site",
        dest="external_sites",
        action="append",
        metavar="NAME",
        help="held out of all training, tested by every model; may be repeated",
    )
    add(
        "--test-set",
        action="store_true",
        default=None,
        help="test on imagesTs and its labels in place of the validation cases of the fold",
    )
    add_nnunet_flags(parser)
    add_partition_flags(parser)
    parser.add_argument("--sites-file", type=Path, metavar="JSON", help="{site: [case, ...]}")
    add_federation_flags(parser)
    # of the settings file: [centralised], [local] and [federated.NAME] change one kind of arm
    parser.set_defaults(tables=KINDS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _compare(parse(parser, argv)))


def _compare(options: Options) -> None:
    prepare_process()
    target = list(options.get("target", []))
    if len(target) < 3:
        raise SettingsError(
            f"expected DATASET CONFIGURATION FOLD, got {' '.join(target) or 'nothing'}; "
            "for example: nnUNetv2_federated_compare 501 2d 0"
        )
    device = choose_device(options.get("device"))
    folds = [fold_number(text) for text in target[2:]]
    comparison = build_comparison(
        options,
        target[0],
        target[1],
        folds,
        device,
        say=lambda text: print(text, file=sys.stderr),
    )
    folder = options.get("output") or _default_folder(comparison)
    began = open_comparison(folder, comparison)
    os.environ.setdefault("nnUNet_results", str(folder))  # nnU-Net asks for one
    with _only_one(folder):
        _say(options, f"{'continuing' if began else 'comparing'} in {folder}")
        failed = run_models(
            comparison, folder, torch.device(device), say=lambda text: _say(options, text)
        )
        report = write_report(comparison, folder)
    _say(options, f"report: {report}")
    if failed:
        print(
            f"error: {failed} of {len(comparison.models())} models failed, see the report; the "
            "same command tries them again",
            file=sys.stderr,
        )
        raise SystemExit(1)


def _say(options: Options, text: str) -> None:
    if not options.get("quiet"):
        say(text)


def _default_folder(comparison: Comparison) -> Path:
    check_environment(nnUNet_results)
    folds = "_".join(map(str, comparison.folds))
    name = f"comparison_{comparison.trainer}_{comparison.configuration}_fold_{folds}"
    return Path(nnUNet_results.require()) / comparison.dataset / name


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a lock that trainings started from here inherit: a killed command may leave one."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415  # not on Windows

    with (folder / ".lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"-o {folder}: this comparison is still at work, perhaps a training that outlived "
                "a killed command; wait for it or end it."
            ) from error
        yield


if __name__ == "__main__":
    main()
