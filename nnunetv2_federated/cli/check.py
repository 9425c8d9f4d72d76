"""``nnUNetv2_federated_check``: whether a preprocessed dataset agrees with itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_federated.cli.console import print_checks
from nnunetv2_federated.cli.options import Options, fold_number, parse, run_command
from nnunetv2_federated.federation.errors import SettingsError


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_check",
        description="Show whether folds, cases, patients, segmentations and raw data of a "
        "preprocessed dataset agree. A training checks the same before it begins.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="dataset id or name")
    parser.add_argument(
        "configuration",
        nargs="?",
        metavar="CONFIGURATION",
        help="as of nnUNetv2_train (default: all that are preprocessed)",
    )
    parser.add_argument("fold", nargs="?", metavar="FOLD", help="0 to 4, or all (default: each)")
    parser.add_argument("-p", dest="plans", metavar="PLANS", help="plans identifier (nnUNetPlans)")
    parser.add_argument(
        "-tr",
        dest="trainer",
        metavar="TRAINER",
        help="trainer (nnUNetTrainerFederated; of a classification nnUNetTrainerCls)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _check(parse(parser, argv)))


def _check(options: Options) -> None:
    # imported here: torch and nnU-Net take seconds, which --help need not wait for
    from nnunetv2_federated.experiment.dataset_check import (  # noqa: PLC0415
        inspect_configuration,
        preprocessed_configurations,
    )
    from nnunetv2_federated.nnunet.data.dataset import load_dataset  # noqa: PLC0415
    from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders  # noqa: PLC0415

    use_trainer_folders()
    fold = fold_number(options["fold"]) if "fold" in options else None
    dataset = load_dataset(options["dataset"], options.get("plans", "nnUNetPlans"))
    wanted = options.get("configuration")
    bad = []
    for name in [wanted] if wanted else preprocessed_configurations(dataset):
        checks = list(inspect_configuration(dataset, name, fold, options.get("trainer")))
        bad += print_checks(f"{dataset.name} {name}", checks)
    if bad:
        raise SettingsError(f"{dataset.name} does not agree with itself: {', '.join(bad)}")


if __name__ == "__main__":
    main()
