"""``nnUNetv2_cls_plan``: add a configuration for classification to a dataset's plans."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_cls.cli._run import run_command
from nnunetv2_cls.network import NORMS
from nnunetv2_cls.planning import ClsPlan, add_configuration, size_of


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
    add("-c", dest="parent", default="2d", metavar="CONFIGURATION", help="to inherit from (2d)")
    add("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans (nnUNetPlans)")
    add("--size", type=int, nargs="+", metavar="N", help="of an image (median of the dataset)")
    add("--batch-size", type=int, default=32, metavar="N", help="images of a batch (32)")
    add("--model", default="resnet18", metavar="NAME", help="any timm model, 2D (resnet18)")
    add("--norm", default="batch", choices=NORMS, help="group: GroupNorm for BatchNorm (batch)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _plan(options))


def _plan(options: argparse.Namespace) -> None:
    dimensions = 2 if options.parent.startswith("2d") else 3
    wanted = ClsPlan(
        parent=options.parent,
        size=size_of(options.size, dimensions),
        batch_size=options.batch_size,
        model=options.model,
        norm=options.norm,
    )
    path, said = add_configuration(options.dataset, options.plans, wanted)
    print(f"added {wanted.name} to {path}")
    if said:
        print(said)
    print("train with:")
    print('  export nnUNet_extTrainer="$(nnUNetv2_federated_trainer_folder)"')
    print(f"  nnUNetv2_train {options.dataset} {wanted.name} 0 -tr nnUNetTrainerCls")
    print(f"  nnUNetv2_train_federated {options.dataset} {wanted.name} 0 -tr nnUNetTrainerCls")


if __name__ == "__main__":
    main()
