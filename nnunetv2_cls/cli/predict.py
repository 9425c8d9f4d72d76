"""``nnUNetv2_predict_cls``: probabilities and classes of raw images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_results

from nnunetv2_cls.cam import check_captum
from nnunetv2_cls.cli._run import run_command
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inference import load_model
from nnunetv2_cls.labels import find_name
from nnunetv2_cls.prediction import predict_folder


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; flags are those of nnUNetv2_predict where there is such."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_predict_cls",
        description="Classify raw images with trained folds: predictions.csv and predictions.json.",
    )
    add = parser.add_argument
    add("-i", dest="images", type=Path, required=True, metavar="IN", help="folder of raw images")
    add("-o", dest="output", type=Path, required=True, metavar="OUT", help="output folder")
    add("-d", dest="dataset", required=True, metavar="DATASET", help="id or name")
    add("-c", dest="configuration", required=True, metavar="CONFIGURATION", help="such as 2d_cls")
    add("-tr", dest="trainer", default="nnUNetTrainerCls", metavar="TRAINER")
    add("-p", dest="plans", default="nnUNetPlans", metavar="PLANS")
    add("-f", dest="folds", nargs="+", default=["0", "1", "2", "3", "4"], help="folds to ensemble")
    add("-chk", dest="checkpoint", default="checkpoint_final.pth", help="name of the checkpoint")
    add("-device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cpu or mps")
    add("--disable_tta", action="store_true", help="no mirroring")
    add("--cam", action="store_true", help="also class-activation maps, cam/CASE.png (captum)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _predict(options))


def _predict(options: argparse.Namespace) -> None:
    if options.cam:
        check_captum()
    if not nnUNet_results.is_set():
        raise ClsError("nnUNet_results is not set: export nnUNet_results=/path/to/folder.")
    model_name = f"{options.trainer}__{options.plans}__{options.configuration}"
    model = load_model(
        Path(nnUNet_results.require()) / find_name(options.dataset) / model_name,
        options.configuration,
        options.folds,
        options.checkpoint,
        torch.device(options.device),
    )
    unreadable = predict_folder(
        model,
        options.images,
        options.output,
        mirror=not options.disable_tta,
        cam=options.cam,
    )
    print(f"wrote {options.output / 'predictions.csv'} and predictions.json")
    for case, why in unreadable.items():
        print(f"not readable: {case}: {' '.join(why.split())}", file=sys.stderr)
    if unreadable:
        print(f"error: {len(unreadable)} cases could not be read", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
