"""``nnUNetv2_cls_pretrained``: weights trained elsewhere, for ``-pretrained_weights``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cls.cli._run import run_command
from nnunetv2_cls.pretrained import configured_network, write_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_cls_pretrained",
        description="Fit the weights of a timm or torchvision classifier to a configuration such "
        "as 2d_cls, as a checkpoint for -pretrained_weights of nnUNetv2_train and "
        "nnUNetv2_train_federated. The head starts anew.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="dataset id or name")
    add("-i", dest="source", required=True, metavar="FILE", help="file, or a timm name to fetch")
    add("-o", dest="output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    add("-c", dest="configuration", default="2d_cls", help="to be trained (2d_cls)")
    add("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="plans (nnUNetPlans)")
    add("--model", metavar="NAME", help="of a trainer that sets its own, for example resnet50")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    network = configured_network(
        options.dataset, options.plans, options.configuration, options.model
    )
    write_checkpoint(network, options.source, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
