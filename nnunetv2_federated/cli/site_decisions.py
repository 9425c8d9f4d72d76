"""What a site's engineer decides with ``nnUNetv2_federated_site``: approve, withdraw, rewind.

Only JSON files and hashes are read for an approval, so torch, nnU-Net's trainers and Flower are not
imported: the engineer gets an answer at once.
"""

from __future__ import annotations

import getpass

from nnunetv2_federated.cli.options import Options
from nnunetv2_federated.cli.site_questions import ask, show
from nnunetv2_federated.federation.audit import AUDIT_FILE, AuditLog
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.site.consent import FEWEST_DIGITS, Consent
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile


def decide(settings: SiteSettingsFile, options: Options) -> None:
    """Carry out what an engineer decides about approvals and rounds.

    Parameters
    ----------
    settings
        Content of the site's ``site.toml``.
    options
        Flags of the command: ``approve`` (a hash, or true for the question), ``withdraw`` or
        ``rewind``.

    Raises
    ------
    SettingsError
        If the flag's value is not allowed, or nobody is there to answer a question.
    """
    who = getpass.getuser()
    if "rewind" in options:
        _rewind(settings, options, f"--rewind, {who}")
        return
    record = AuditLog(settings.work / AUDIT_FILE).record
    consent = Consent(settings.name, settings.work, record=record)
    if "withdraw" in options:
        approval = consent.complete("--withdraw", options["withdraw"])
        consent.withdraw(approval, f"--withdraw, {who}")
        print(f"withdrawn {approval}; the site takes no part in it from the next message on")
    elif options["approve"] is True:
        _approve_after_asking(consent, options["dataset"], f"--approve, {who}")
    else:
        _approve_hash(consent, options, f"--approve, {who}")


def _approve_after_asking(consent: Consent, dataset: str, how: str) -> None:
    proposal = consent.proposed()
    if proposal is None:
        print("nothing was proposed that is not approved already")
    elif ask(proposal, dataset):
        consent.approve(proposal.approval(), how)
        print("approved")


def _approve_hash(consent: Consent, options: Options, how: str) -> None:
    proposal = consent.proposed()
    approval = consent.complete("--approve", options["approve"])
    if proposal is not None and proposal.approval() == approval:
        show(proposal, options["dataset"])
    consent.approve(approval, how)
    print(f"approved {approval[:FEWEST_DIGITS]}")


def _rewind(settings: SiteSettingsFile, options: Options, how: str) -> None:
    run, number = options["rewind"]
    if not number.isdecimal() or int(number) < 1:
        raise SettingsError(
            f"--rewind {run} {number}: give the round as the server counts it, from 1."
        )
    # imported here: it imports torch and Flower, which an approval need not wait for
    from nnunetv2_federated.cli.site_process import open_site  # noqa: PLC0415

    open_site(settings, options).rewind(run, int(number) - 1, how)
    print(f"the server may ask for round {number} of {run} again; what was spent stays spent")
