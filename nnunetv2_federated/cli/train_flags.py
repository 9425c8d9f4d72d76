"""The flags of ``nnUNetv2_train_federated``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.cli.options import add_partition_flags
from nnunetv2_federated.federation.settings import (
    BACKENDS,
    LR_SCHEDULES,
    OVERSIZED_UPDATE,
    STRATEGIES,
    TRANSPORT_DTYPES,
)

DESCRIPTION = """Train nnU-Net across sites. Sites are simulated on this machine, one after another,
or with --server are hospitals on other machines (nnUNetv2_federated_site); the result is a stock
nnU-Net result folder that nnUNetv2_predict uses as it is."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; no flag has a default here, the settings have."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_train_federated",
        usage="%(prog)s DATASET CONFIGURATION FOLD [flags]",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "target",
        nargs="*",
        metavar="DATASET CONFIGURATION FOLD",
        help="dataset id or name, configuration such as 2d or 3d_fullres, and fold (0 to 4, or "
        "all); with --site-datasets, DATASET may be left out",
    )
    add_nnunet_flags(parser)
    add_continue_flags(parser)
    add_partition_flags(parser)
    group = parser.add_argument_group("sites that exist already")
    group.add_argument("--sites-file", type=Path, metavar="JSON", help="{site: [case, ...]}")
    group.add_argument(
        "--site-datasets", nargs="+", metavar="ID", help="one dataset per site, same plans"
    )
    add_federation_flags(parser)
    _add_runtime_flags(parser)
    add_network_flags(parser)
    add_deadline_flag(parser)
    return parser


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a federation over a network."""
    add = parser.add_argument_group("sites on other machines").add_argument
    add("--server", metavar="HOST[:PORT]", help="where the sites find this server")
    add(
        "--credentials",
        type=Path,
        metavar="FOLDER",
        help="the folder 'server' of nnUNetv2_federated_provision (credentials/server)",
    )
    add(
        "--listen",
        metavar="HOST:PORT",
        help="where the server itself listens (default: --server if that is this machine only, "
        "else loopback, one port above, for the proxy of nginx.conf)",
    )
    add("--remote-sites", nargs="+", metavar="NAME", help="who takes part (all with a key)")
    add(
        "--wait-for-sites",
        type=float,
        metavar="SECONDS",
        help="how long to wait for sites that are not connected (600)",
    )
    add(
        "--answer-deadline",
        type=float,
        metavar="SECONDS",
        help="longest to wait for any answer; who is silent is then left out and named (86400)",
    )
    add(
        "--superlink-database",
        type=Path,
        metavar="FOLDER",
        help="for the weights in flight (default: with the SuperLink's log); fastest in memory, "
        "as /dev/shm/federation",
    )
    add("--force", action="store_true", default=None, help="listen beyond this machine too")


def add_deadline_flag(parser: argparse.ArgumentParser) -> None:
    """Add the deadline of a round over a network."""
    parser.add_argument(
        "--round-deadline", type=float, metavar="SECONDS", help="longest a round may take (none)"
    )


def add_nnunet_flags(parser: argparse.ArgumentParser) -> None:
    """Add what nnUNetv2_train has, too, and a comparison as well."""
    add = parser.add_argument_group("as in nnUNetv2_train").add_argument
    add("-tr", dest="trainer", metavar="TRAINER", help="any nnU-Net trainer (nnUNetTrainer)")
    add("-p", dest="plans", metavar="PLANS", help="plans identifier (nnUNetPlans)")
    add("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is one, else cpu")
    add("-pretrained_weights", metavar="FILE", help="nnU-Net checkpoint to start from")


def add_continue_flags(parser: argparse.ArgumentParser) -> None:
    """Add what nnUNetv2_train has, too, about one training's checkpoints."""
    add = parser.add_argument_group("one training, as in nnUNetv2_train").add_argument
    for flag, text in (
        ("--c", "continue where an earlier run stopped"),
        ("--val", "only validate, with checkpoint_final.pth"),
        ("--val_best", "validate with checkpoint_best.pth"),
        ("--npz", "save softmax outputs of the validation"),
        ("--disable_checkpointing", "write no checkpoint"),
    ):
        add(flag, action="store_true", default=None, help=text)


def add_federation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a federation's settings."""
    add = parser.add_argument_group("federation").add_argument
    add("--settings", type=Path, metavar="TOML", help="file with any of these flags; flags win")
    for flag, kind, text in (
        ("--rounds", int, "rounds (default 120)"),
        ("--local-epochs", int, "nnU-Net epochs in a round (default 1)"),
        ("--iterations-per-epoch", int, "of an epoch, training (default: the trainer's, 250)"),
        ("--val-iterations", int, "of an epoch, validation (default: the trainer's, 50)"),
        ("--batch-size", int, "default: the plans'"),
        ("--initial-lr", float, "learning rate of round 0 (default: the trainer's, 0.01)"),
        ("--momentum", float, "default: the trainer's, 0.99"),
        ("--weight-decay", float, "default: the trainer's, 3e-5"),
        ("--sites-per-round", int, "sites that train in a round (default: all)"),
        (
            "--min-replies",
            int,
            "fewest usable replies of a round (all; with --server: over half)",
        ),
        ("--resident-trainers", int, "trainers kept alive at once (default: 4)"),
    ):
        add(flag, type=kind, metavar="N" if kind is int else "X", help=text)
    add(
        "--lr-schedule",
        choices=LR_SCHEDULES,
        help="the trainer's own with rounds in place of epochs (default), or nnU-Net's poly decay "
        "in its place; parameter groups keep their ratios",
    )
    add(
        "--transport-dtype",
        choices=TRANSPORT_DTYPES,
        help="of weights on the way: 16 bits halve the traffic (default float32)",
    )
    add("--local-momentum", choices=("keep", "reset"), help="between rounds (default keep)")
    add(
        "--batchnorm",
        choices=("average", "local", "group"),
        help="of networks that have it: average over sites (default), local to each (FedBN), or "
        "GroupNorm in its place",
    )
    add("--strategy", choices=STRATEGIES, help="Flower's strategy (default fedavg)")
    add(
        "--strategy-option",
        dest="strategy_options",
        action="append",
        metavar="KEY=VALUE",
        help="argument of the strategy, for example proximal_mu=0.1; may be repeated",
    )
    add("--weighting", choices=("cases", "uniform"), help="of the sites (default cases)")
    add(
        "--max-update-norm",
        type=_update_norm,
        metavar="X|auto|none",
        help="longest update that is aggregated, L2 norm of trained minus sent weights; auto "
        "(default) is ten times the usual, from three sites on",
    )
    add(
        "--oversized-update",
        choices=OVERSIZED_UPDATE,
        help="what is longer: refuse it by name (default), or clip it to the limit",
    )
    add(
        "--no-global-validation",
        dest="global_validation",
        action="store_false",
        default=None,
        help="skip the validation of the global model that precedes each round's training",
    )
    add("--quiet", action="store_true", default=None, help="print errors only")
    add(
        "--reduced",
        action="store_true",
        default=None,
        help="let the table [reduced] of the settings file replace what it names",
    )


def _update_norm(text: str) -> float | str:
    """Read a number; the settings judge what is none."""
    try:
        return float(text)
    except ValueError:
        return text


def _add_runtime_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("runtime").add_argument
    add("--backend", choices=BACKENDS, help="in-process (default), or ray for several GPUs")
    add(
        "--prepare-only",
        action="store_true",
        default=None,
        help="check everything, write the run's folder and print the flwr run command",
    )


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Spell options as this command's flags, the inverse of parsing."""
    flags = []
    for action in build_parser()._actions:  # no other way
        value = options.get(action.dest)
        if value is None or not action.option_strings:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            given = value is getattr(action, "const", True)
            flags += [flag] if given else []
        elif isinstance(value, Mapping):
            for key, number in value.items():
                flags += [flag, f"{key}={number}"]
        elif isinstance(value, list) and action.nargs is not None:
            flags += [flag, *map(str, value)]
        elif isinstance(value, list):
            for item in value:
                flags += [flag, str(item)]
        else:
            flags += [flag, str(value)]
    return flags
