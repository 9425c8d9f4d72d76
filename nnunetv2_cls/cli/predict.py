"""``nnUNetv2_predict_cls``: probabilities and classes of raw images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nnunetv2_cls
from nnunetv2_cls import defaults
from nnunetv2_cls.cli._run import run_command


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; flags are named as those of nnUNetv2_predict where it has them."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_predict_cls",
        description="Classify raw images with trained folds: predictions.csv and predictions.json.",
    )
    add = parser.add_argument
    add("-i", dest="images", type=Path, required=True, metavar="IN", help="folder of raw images")
    add("-o", dest="output", type=Path, required=True, metavar="OUT", help="output folder")
    add("-d", dest="dataset", required=True, metavar="DATASET", help="dataset id or name")
    add(
        "-c",
        dest="configuration",
        required=True,
        metavar="CONFIGURATION",
        help=f"configuration, such as {defaults.CONFIGURATION}",
    )
    add(
        "-tr",
        dest="trainer",
        default=defaults.TRAINER,
        metavar="TRAINER",
        help="trainer of the folds (default %(default)s)",
    )
    add(
        "-p",
        dest="plans",
        default=defaults.PLANS,
        metavar="PLANS",
        help="name of the plans (default %(default)s)",
    )
    add(
        "-f",
        dest="folds",
        nargs="+",
        default=defaults.FOLDS,
        metavar="FOLD",
        help=f"folds whose probabilities are averaged (default {' '.join(defaults.FOLDS)})",
    )
    add(
        "-chk",
        dest="checkpoint",
        default=defaults.CHECKPOINT,
        metavar="FILE",
        help="file name of the checkpoint in each fold's folder (default %(default)s)",
    )
    add("-device", help="cuda, cpu or mps (default: cuda where there is one, else cpu)")
    add("--disable_tta", action="store_true", help="no mirroring")
    add("--cam", action="store_true", help="also class-activation maps, cam/CASE.png (captum)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _predict(options))


def _predict(options: argparse.Namespace) -> None:
    predictions = nnunetv2_cls.predict(
        options.images,
        options.output,
        dataset=options.dataset,
        configuration=options.configuration,
        trainer=options.trainer,
        plans=options.plans,
        folds=options.folds,
        checkpoint=options.checkpoint,
        device=options.device,
        mirror=not options.disable_tta,
        cam=options.cam,
    )
    print(f"wrote {options.output / 'predictions.csv'} and predictions.json")
    for case, why in predictions.unreadable.items():
        print(f"not readable: {case}: {' '.join(why.split())}", file=sys.stderr)
    if predictions.unreadable:
        print(f"error: {len(predictions.unreadable)} cases could not be read", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
