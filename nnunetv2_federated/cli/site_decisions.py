"""What a site's engineer decides with ``nnUNetv2_federated_site``: approve, withdraw, rewind.

Only JSON files and hashes are read for an approval, so torch, nnU-Net's trainers and Flower are not
imported: the engineer gets an answer at once.
"""

from __future__ import annotations

import getpass

from nnunetv2_federated.cli.site_choices import ASK, SiteCommandChoices
from nnunetv2_federated.cli.site_questions import ask, show
from nnunetv2_federated.federation.audit import AUDIT_FILE, AuditLog
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.site.consent import FEWEST_DIGITS, Consent
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile


def decide(settings: SiteSettingsFile, choices: SiteCommandChoices) -> None:
    """Carry out what an engineer decides about approvals and rounds.

    Parameters
    ----------
    settings
        Content of the site's ``site.toml``.
    choices
        Choices of the command: ``approve`` (a hash, or :data:`.ASK`), ``withdraw`` or ``rewind``.

    Raises
    ------
    SettingsError
        If the flag's value is not allowed, or nobody is there to answer a question.
    """
    who = getpass.getuser()
    if choices.rewind is not None:
        _rewind(settings, choices, *choices.rewind, how=f"--rewind, {who}")
        return
    record = AuditLog(settings.work / AUDIT_FILE).record
    consent = Consent(settings.name, settings.work, record=record)
    if choices.withdraw is not None:
        approval = consent.complete("--withdraw", choices.withdraw)
        consent.withdraw(approval, f"--withdraw, {who}")
        print(f"withdrawn {approval}; the site takes no part in it from the next message on")
    elif choices.approve == ASK:
        _approve_after_asking(consent, choices.dataset_name, f"--approve, {who}")
    elif choices.approve is not None:
        _approve_hash(consent, choices.approve, choices.dataset_name, f"--approve, {who}")


def _approve_after_asking(consent: Consent, dataset: str, how: str) -> None:
    proposal = consent.proposed()
    if proposal is None:
        print("nothing was proposed that is not approved already")
    elif ask(proposal, dataset):
        consent.approve(proposal.approval(), how)
        print("approved")


def _approve_hash(consent: Consent, digits: str, dataset: str, how: str) -> None:
    proposal = consent.proposed()
    approval = consent.complete("--approve", digits)
    if proposal is not None and proposal.approval() == approval:
        show(proposal, dataset)
    consent.approve(approval, how)
    print(f"approved {approval[:FEWEST_DIGITS]}")


def _rewind(
    settings: SiteSettingsFile, choices: SiteCommandChoices, run: str, number: str, *, how: str
) -> None:
    if not number.isdecimal() or int(number) < 1:
        raise SettingsError(
            f"--rewind {run} {number}: give the round as the server counts it, from 1."
        )
    # imported here: it imports torch and Flower, which an approval need not wait for
    from nnunetv2_federated.cli.site_process import open_site  # noqa: PLC0415

    open_site(settings, choices).rewind(run, int(number) - 1, how)
    print(f"the server may ask for round {number} of {run} again; what was spent stays spent")
