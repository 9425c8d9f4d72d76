"""``nnUNetv2_cls_pretrained``: weights trained elsewhere, for ``-pretrained_weights``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import nnunetv2_cls
from nnunetv2_cls import defaults
from nnunetv2_cls.cli._run import run_command


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
    add(
        "-i",
        dest="source",
        required=True,
        metavar="FILE",
        help="file of weights, or name of a timm model whose ImageNet weights are fetched",
    )
    add("-o", dest="output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    add(
        "-c",
        dest="configuration",
        default=defaults.CONFIGURATION,
        help="configuration that will be trained (default %(default)s)",
    )
    add(
        "-p",
        dest="plans",
        default=defaults.PLANS,
        metavar="PLANS",
        help="name of the plans (default %(default)s)",
    )
    add(
        "--model",
        metavar="NAME",
        help="timm model of a trainer that sets its own, for example resnet50 (default: that of "
        "the plans)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _write(options))


def _write(options: argparse.Namespace) -> None:
    path = nnunetv2_cls.write_pretrained(
        options.dataset,
        options.source,
        options.output,
        configuration=options.configuration,
        plans=options.plans,
        model=options.model,
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
