"""``nnUNetv2_federated_site``: a hospital's side of a federation over a network."""

from __future__ import annotations

import argparse
import functools
import getpass
import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from nnunetv2_federated.cli.console import print_findings, say, send_logs_to
from nnunetv2_federated.cli.options import fold_number, parse, run_command
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.federation.audit import AUDIT_FILE, AuditLog
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.flower.deployment.site.consent import Agreement
from nnunetv2_federated.flower.deployment.site.desk import Desk
from nnunetv2_federated.flower.deployment.site.new_key import identity, make_key
from nnunetv2_federated.flower.deployment.site.preflight import Wanted, check_site
from nnunetv2_federated.flower.deployment.site.proposal_text import describe
from nnunetv2_federated.flower.deployment.site.serve import serve
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile, read_site_file
from nnunetv2_federated.nnunet.data.dataset import check_environment, find_name
from nnunetv2_federated.nnunet.device import choose_device
from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders
from nnunetv2_federated.nnunet.training.packages import compare_packages
from nnunetv2_federated.nnunet.training.tracking import stay_local

_ASK = "ask"
_DECISIONS = ("approve", "withdraw", "rewind")
_RUNS_ALREADY = "this site runs already; stop the other process first."


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
        help="of the bundle the coordinator handed out",
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
        help="for --new-key: where to put it (a folder NAME here)",
    )
    add("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is one, else cpu")
    add("-np", type=int, metavar="N", help="processes, when it is planned for (nnU-Net's)")
    add(
        "--approve",
        nargs="?",
        const=_ASK,
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
        help="only look at all that is needed, train one iteration (2d 0), and print a table",
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
    use_trainer_folders()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    stay_local()
    settings = read_site_file(options["site"])
    desk = Desk(
        settings.name,
        options["dataset"],
        settings.work,
        "cpu",
        settings.limits,
        processes=_processes(options),
        allowed_modules=settings.allowed_modules,
        record=AuditLog(settings.work / AUDIT_FILE).record,
    )
    if any(name in options for name in _DECISIONS):
        _decide(desk, options)
        return
    check_environment()
    if "check" in options:
        _check(settings, options)
        return
    if find_name(options["dataset"]) is None:
        raise SettingsError(
            f"dataset {options['dataset']} is unknown here: give the id or name of a dataset under "
            "nnUNet_preprocessed, or under nnUNet_raw to be planned for."
        )
    desk.device = choose_device(options.get("device"))
    if "approve_all" in options:
        desk.consent.ask = _accept
    elif sys.stdin.isatty():
        desk.consent.ask = functools.partial(_ask, desk)
    log = settings.work / "site.log"
    send_logs_to(log)
    with only_one(settings.work / "lock", _RUNS_ALREADY), stopping_as_interrupt():
        _say(f"site {settings.name}, dataset {options['dataset']}, {desk.device}; log in {log}")
        desk.record("started", dataset=options["dataset"], version=version("nnunetv2-federated"))
        for what, mark in identity(settings).items():
            _say(f"{what}: {mark}")
        try:
            serve(settings, desk, _say, threading.Event())
        except KeyboardInterrupt:
            _say("stopped")
        finally:
            desk.record("stopped")
            desk.pool.close()
            desk.release()


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


def _check(settings: SiteSettingsFile, options: Options) -> None:
    target = [*options["check"], *("2d", "0")[len(options["check"]) :]]
    if len(target) > 2:
        raise SettingsError(f"--check {' '.join(target)}: give CONFIGURATION FOLD, as in 2d 0.")
    wanted = Wanted(
        dataset=options["dataset"],
        plans_name=options.get("plans", "nnUNetPlans"),
        configuration=target[0],
        fold=fold_number(target[1]),
        trainer=options.get("trainer", "nnUNetTrainer"),
        device=choose_device(options.get("device")),
    )
    bad = print_findings(f"site {settings.name}", check_site(settings, wanted))
    if bad:
        raise FederationError(f"not ready: {', '.join(bad)}")


def _decide(desk: Desk, options: Options) -> None:
    """Carry out what an engineer says about approvals and rounds, and end."""
    who = getpass.getuser()
    if "rewind" in options:
        _rewind(desk, *options["rewind"], how=f"--rewind, {who}")
    elif "withdraw" in options:
        approval = desk.consent.complete("--withdraw", options["withdraw"])
        desk.consent.withdraw(approval, f"--withdraw, {who}")
        print(f"withdrawn {approval}; the site takes no part in it from the next message on")
    else:
        _approve(desk, options["approve"], f"--approve, {who}")


def _approve(desk: Desk, wanted: str, how: str) -> None:
    proposal = desk.consent.proposed()
    if wanted == _ASK:
        if proposal is None:
            print("nothing was proposed that is not approved already")
        elif _ask(desk, proposal):
            desk.consent.approve(proposal.approval(), how)
            print("approved")
        return
    approval = desk.consent.complete("--approve", wanted)
    if proposal is not None and proposal.approval() == approval:
        print("\n".join(_in_words(desk, proposal)))
    desk.consent.approve(approval, how)
    print(f"approved {approval[:12]}")


def _rewind(desk: Desk, run: str, number: str, *, how: str) -> None:
    if not number.isdecimal() or int(number) < 1:
        raise SettingsError(
            f"--rewind {run} {number}: give the round as the server counts it, from 1."
        )
    desk.rewind(run, int(number) - 1, how)
    print(f"the server may ask for round {number} of {run} again; what was spent stays spent")


def _processes(options: Options) -> int | None:
    number: int | None = options.get("np")
    if number is not None and number < 1:
        raise SettingsError(f"-np {number}: must be at least 1.")
    return number


def _ask(desk: Desk, agreement: Agreement) -> bool:
    print("\n".join(_in_words(desk, agreement)))
    return input("take part? [y/N] ").strip().lower() in ("y", "yes")


def _in_words(desk: Desk, agreement: Agreement) -> list[str]:
    """Say what is proposed, with the plans as they are here and the packages that differ."""
    return describe(agreement, desk.plans_of(agreement), compare_packages(agreement.packages))


def _accept(agreement: Agreement) -> bool:
    _say(f"agrees to {agreement.what} {agreement.approval()[:12]}, as --approve-all says")
    return True


def _say(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')}  {text}")


if __name__ == "__main__":
    main()
