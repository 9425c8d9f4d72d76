"""A hospital's side of a federation at work, and the check before it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version

from nnunetv2_federated.cli.console import print_checks, say
from nnunetv2_federated.cli.site_choices import SiteCommandChoices
from nnunetv2_federated.cli.site_questions import ask
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.federation.audit import AUDIT_FILE, AuditLog
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.federation.logs import send_logs_to
from nnunetv2_federated.federation.names import read_fold
from nnunetv2_federated.flower.deployment.site.consent import Agreement
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.new_key import identity
from nnunetv2_federated.flower.deployment.site.preflight import check_site
from nnunetv2_federated.flower.deployment.site.proposal_text import describe_here
from nnunetv2_federated.flower.deployment.site.serve import serve
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.flower.deployment.site.trial import PreflightTarget
from nnunetv2_federated.nnunet.data.dataset import check_environment, find_name
from nnunetv2_federated.nnunet.device import choose_device
from nnunetv2_federated.nnunet.training.ranks import check_gpus

_RUNS_ALREADY = "this site runs already; stop the other process first."


def check(settings: SiteSettingsFile, choices: SiteCommandChoices) -> None:
    """Print a table of all that the site needs.

    Raises
    ------
    FederationError
        If anything is missing, naming it.
    """
    check_environment()
    named = choices.check or ()
    chosen = [*named, *("2d", "0")[len(named) :]]
    if len(chosen) > 2:
        raise SettingsError(f"--check {' '.join(chosen)}: give CONFIGURATION FOLD, as in 2d 0.")
    device = choose_device(choices.device)
    check_gpus(choices.num_gpus, device)
    target = PreflightTarget(
        dataset=choices.dataset_name,
        plans_name=choices.plans,
        configuration=chosen[0],
        fold=read_fold(chosen[1]),
        trainer=choices.trainer,
        device=device,
        num_gpus=choices.num_gpus,
    )
    bad = print_checks(f"site {settings.name}", check_site(settings, target))
    if bad:
        raise FederationError(f"not ready: {', '.join(bad)}")


def take_part(settings: SiteSettingsFile, choices: SiteCommandChoices) -> None:
    """Take part in federations until the process is stopped.

    Raises
    ------
    SettingsError
        If the dataset is unknown, a flag's value is not allowed, the site runs already, or the
        server's certificate is not trusted.
    """
    check_environment()
    if find_name(choices.dataset_name) is None:
        raise SettingsError(
            f"dataset {choices.dataset_name} is unknown here: give the id or name of a dataset "
            "under nnUNet_preprocessed, or under nnUNet_raw to be planned for."
        )
    device = choose_device(choices.device)
    check_gpus(choices.num_gpus, device)
    site = open_site(settings, choices, device, who_agrees(choices))
    log = settings.work / "site.log"
    send_logs_to(log)
    with only_one(settings.work / "lock", _RUNS_ALREADY), stopping_as_interrupt():
        where = device if choices.num_gpus == 1 else f"{choices.num_gpus} GPUs"
        _say(f"site {settings.name}, dataset {choices.dataset_name}, {where}; log in {log}")
        site.record("started", dataset=choices.dataset_name, version=version("nnunetv2-federated"))
        for what, mark in identity(settings).items():
            _say(f"{what}: {mark}")
        try:
            serve(settings, site, _say, threading.Event())
        except KeyboardInterrupt:
            _say("stopped")
        finally:
            site.record("stopped")
            site.close()


def open_site(
    settings: SiteSettingsFile,
    choices: SiteCommandChoices,
    device: str = "cpu",
    ask: Callable[[Agreement], bool] | None = None,
) -> GuardedSite:
    """Open the site's approvals, ledger and trainers; nothing is trained yet."""
    here = LocalSite(
        settings.name,
        choices.dataset_name,
        settings.work,
        device,
        settings.limits,
        processes=choices.np,
        allowed_modules=settings.allowed_modules,
        num_gpus=choices.num_gpus,
    )
    return GuardedSite(here, ask=ask, record=AuditLog(settings.work / AUDIT_FILE).record)


def who_agrees(choices: SiteCommandChoices) -> Callable[[Agreement], bool]:
    """Return what decides about a proposal, once it has shown it in words.

    Parameters
    ----------
    choices
        Choices of the command: with ``approve_all`` it agrees, else somebody at the terminal is
        asked, and without a terminal it waits for ``--approve``.
    """
    dataset: str = choices.dataset_name
    if choices.approve_all:
        return lambda agreement: _agree(agreement, dataset)
    if sys.stdin.isatty():
        return lambda agreement: _ask(agreement, dataset)
    return _ShowOnce(dataset)


def _agree(agreement: Agreement, dataset: str) -> bool:
    _say_lines(agreement, dataset)
    _say(f"agrees to {agreement.what} {agreement.approval()[:12]}, as --approve-all says")
    return True


def _ask(agreement: Agreement, dataset: str) -> bool:
    try:
        return ask(agreement, dataset)
    except SettingsError:  # Ctrl-D: somebody may still run --approve
        print()
        return False


class _ShowOnce:
    """Shows what is proposed where nobody can be asked; the server asks again every minute."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._shown: set[str] = set()

    def __call__(self, agreement: Agreement) -> bool:
        if agreement.approval() not in self._shown:
            self._shown.add(agreement.approval())
            _say_lines(agreement, self._dataset)
        return False


def _say_lines(agreement: Agreement, dataset: str) -> None:
    for line in describe_here(agreement, dataset):
        _say(line)


def _say(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')}  {text}")
