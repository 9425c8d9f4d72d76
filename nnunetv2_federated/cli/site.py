"""``nnUNetv2_federated_site``: a hospital's side of a federation over a network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.options import Options, parse, run_command
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.site.new_key import make_key
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file

_DECISIONS = ("approve", "withdraw", "rewind")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_site",
        description="Take part in federations with a dataset of this machine, until stopped. One "
        "process keeps the trainer from round to round; it opens no port and runs no code that was "
        "sent to it.",
    )
    add = parser.add_argument
    add(
        "dataset",
        nargs="?",
        metavar="DATASET",
        help="id or name; raw, or planned and preprocessed here",
    )
    add(
        "--site",
        type=Path,
        metavar="site.toml",
        help="file of the bundle that the coordinator handed out",
    )
    add(
        "--new-key",
        metavar="NAME",
        help="make this site's key pair, and end: the private half stays here, NAME.pub goes to "
        "the coordinator",
    )
    add(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="for --new-key: folder of the key, created if missing (NAME, here)",
    )
    add("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is one, else cpu")
    add(
        "-np",
        type=int,
        metavar="N",
        help="processes for the fingerprint and the preprocessing when sites plan together",
    )
    add(
        "--approve",
        nargs="?",
        const=True,
        metavar="HASH",
        help="agree to what was proposed, and end: without HASH show it and ask; with at least 12 "
        "digits of its hash, agree to that",
    )
    add(
        "--withdraw",
        metavar="HASH",
        help="take an approval back, and end: the site takes no part from the next message on",
    )
    add(
        "--rewind",
        nargs=2,
        metavar=("RUN", "ROUND"),
        help="let a server that was restored from a backup ask for a round again, and end; what "
        "was spent stays spent",
    )
    add(
        "--approve-all",
        action="store_true",
        default=None,
        help="agree to whatever the coordinator signs; your limits still hold",
    )
    add(
        "--check",
        nargs="*",
        metavar="CONFIGURATION FOLD",
        help="only check all that is needed, train one iteration (2d 0), and print a table",
    )
    add("-tr", dest="trainer", metavar="TRAINER", help="for --check (nnUNetTrainer)")
    add("-p", dest="plans", metavar="PLANS", help="for --check (nnUNetPlans)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _site(parse(parser, argv)))


def _site(options: Options) -> None:
    if "new_key" in options:
        _new_key(options)
        return
    _check_given(options)
    settings = read_site_file(options["site"])
    if any(name in options for name in _DECISIONS):
        from nnunetv2_federated.cli import site_decisions  # noqa: PLC0415  # as below

        site_decisions.decide(settings, options)
        return
    # imported here: torch, nnU-Net and Flower take seconds, which a decision need not wait for,
    # nor a worker that nnU-Net starts and that imports this module anew
    from nnunetv2_federated.cli import site_process  # noqa: PLC0415
    from nnunetv2_federated.nnunet.process import prepare_process  # noqa: PLC0415

    prepare_process()
    if "check" in options:
        site_process.check(settings, options)
    else:
        site_process.take_part(settings, options)


def _check_given(options: Options) -> None:
    for name, flag in (("dataset", "DATASET"), ("site", "--site site.toml")):
        if name not in options:
            raise SettingsError(f"{flag} is missing: see nnUNetv2_federated_site --help.")


def _new_key(options: Options) -> None:
    name = options["new_key"]
    made = make_key(name, options.get("folder", Path(name)))
    print(f"made {made.private}: it stays on this machine, send it to nobody")
    print(f"made {made.public}: send it to the coordinator, who answers with a bundle")
    print(f"the coordinator must see the same fingerprint, compare it by telephone:\n{made.mark}")
    print(f"then put the bundle's files beside the key, in {made.private.parent}")


if __name__ == "__main__":
    main()
