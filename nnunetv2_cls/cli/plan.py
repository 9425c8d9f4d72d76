"""``nnUNetv2_cls_plan``: add a configuration for classification to a dataset's plans."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import nnunetv2_cls
from nnunetv2_cls import defaults
from nnunetv2_cls.cli._run import run_command


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_cls_plan",
        description="Add a configuration such as 2d_cls, which classifies whole images, to the "
        "plans of a dataset that nnUNetv2_plan_and_preprocess has planned. The preprocessed data "
        "is shared with the configuration it inherits from.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="dataset id or name")
    add(
        "-c",
        dest="parent",
        default=defaults.PARENT,
        metavar="CONFIGURATION",
        help="configuration to inherit from (default %(default)s)",
    )
    add(
        "-p",
        dest="plans",
        default=defaults.PLANS,
        metavar="PLANS",
        help="name of the plans (default %(default)s)",
    )
    add(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="size of an image in voxels: one number for all axes, or one for each (default: "
        "median size of the dataset's images)",
    )
    add(
        "--batch-size",
        type=int,
        default=defaults.BATCH_SIZE,
        metavar="N",
        help="images in a batch (default %(default)s)",
    )
    add(
        "--model",
        default=defaults.MODEL,
        metavar="NAME",
        help="any timm model, for a 2D configuration (default %(default)s)",
    )
    add(
        "--norm",
        default=defaults.NORM,
        choices=defaults.NORMS,
        help="group: GroupNorm in place of BatchNorm (default %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _plan(options))


def _plan(options: argparse.Namespace) -> None:
    planned = nnunetv2_cls.plan(
        options.dataset,
        parent=options.parent,
        plans=options.plans,
        size=options.size,
        batch_size=options.batch_size,
        model=options.model,
        norm=options.norm,
    )
    print(f"added {planned.name} to {planned.plans_file}")
    if planned.folds:
        print(planned.folds)
    trainer = f"-tr {defaults.TRAINER}"
    print("train with:")
    print('  export nnUNet_extTrainer="$(nnUNetv2_federated_trainer_folder)"')
    print(f"  nnUNetv2_train {options.dataset} {planned.name} 0 {trainer}")
    print(f"  nnUNetv2_train_federated {options.dataset} {planned.name} 0 {trainer}")


if __name__ == "__main__":
    main()
