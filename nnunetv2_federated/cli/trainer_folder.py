"""``nnUNetv2_federated_trainer_folder``: what to put into ``nnUNet_extTrainer``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nnunetv2_federated.nnunet.trainer_folders import trainer_folders


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    return argparse.ArgumentParser(
        prog="nnUNetv2_federated_trainer_folder",
        description="Print the folders in which nnU-Net's own commands find the trainers of this "
        "package: export nnUNet_extTrainer=$(nnUNetv2_federated_trainer_folder).",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the folders."""
    build_parser().parse_args(argv)
    print(os.pathsep.join(trainer_folders()))
