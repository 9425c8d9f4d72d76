"""``nnUNetv2_federated_compare``: local, federated and centralised side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_federated.cli.command import Command, Values
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.cli.options import run_command
from nnunetv2_federated.experiment.choices import CompareChoices
from nnunetv2_federated.federation.errors import SettingsError

if TYPE_CHECKING:
    from nnunetv2_federated.experiment.comparison import Comparison

DESCRIPTION = """Train each site alone, the federation, and one model on all cases, with the same
steps, seeds and data; test every model at every site; write report.html, report.md and PNGs. May be
killed at any time: the same command continues. In a settings file, the tables [centralised],
[local] and [federated.NAME] change one kind of arm."""

WITHOUT = ("dataset", "configuration", "folds", "sites on other machines")
"""Fields that this command takes without flags, and a group that it does not have."""


def command() -> Command[CompareChoices]:
    """Return the command line; flags of a training are those of ``nnUNetv2_train_federated``."""
    parser = build_parser(
        CompareChoices,
        "nnUNetv2_federated_compare",
        DESCRIPTION,
        usage="%(prog)s DATASET CONFIGURATION FOLD [FOLD ...] [flags]",
        without=WITHOUT,
    )
    parser.add_argument("target", nargs="*", metavar="DATASET CONFIGURATION FOLD [FOLD ...]")
    return Command(CompareChoices, parser, without=WITHOUT, complete=_read_target)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _compare(command().parse(argv)))


def _read_target(values: Values) -> Values:
    """Split the positional arguments into dataset, configuration and folds."""
    values = dict(values)
    target = values.pop("target", [])
    if len(target) < 3:
        raise SettingsError(
            f"expected DATASET CONFIGURATION FOLD, got {' '.join(target) or 'nothing'}; "
            "for example: nnUNetv2_federated_compare 501 2d 0"
        )
    dataset, configuration, *folds = target
    return values | {"dataset": dataset, "configuration": configuration, "folds": folds}


def _compare(choices: CompareChoices) -> None:
    # heavy: not for --help
    from nnunetv2_federated.experiment.comparison import open_comparison  # noqa: PLC0415
    from nnunetv2_federated.experiment.comparison_models import run_models  # noqa: PLC0415
    from nnunetv2_federated.experiment.comparison_plan import build_comparison  # noqa: PLC0415
    from nnunetv2_federated.experiment.comparison_report import write_report  # noqa: PLC0415
    from nnunetv2_federated.experiment.process import prepare_process  # noqa: PLC0415
    from nnunetv2_federated.nnunet.device import choose_device  # noqa: PLC0415

    def tell(text: str) -> None:
        if not choices.quiet:
            say(text)

    prepare_process()
    comparison, runs = build_comparison(choices, choose_device(choices.device), say=_note)
    folder = choices.output or _default_folder(comparison)
    began = open_comparison(folder, comparison)
    os.environ.setdefault("nnUNet_results", str(folder))  # nnU-Net asks for one
    with _only_one(folder):
        tell(f"{'continuing' if began else 'comparing'} in {folder}")
        # in the output of a batch job a line a round, too
        failed = run_models(comparison, runs, folder, tell, None if sys.stdout.isatty() else tell)
        tell(f"report: {write_report(comparison, folder)}")
    if failed:
        print(
            f"error: {failed} of {len(runs)} models failed, see the report; the same command "
            "tries them again",
            file=sys.stderr,
        )
        raise SystemExit(1)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _default_folder(comparison: Comparison) -> Path:
    # heavy: not for --help
    from nnunetv2.paths import nnUNet_results  # noqa: PLC0415

    from nnunetv2_federated.nnunet.data.dataset import check_environment  # noqa: PLC0415

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
