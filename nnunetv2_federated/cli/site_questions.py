"""What a site's engineer is asked before the site takes part: in words first, then yes or no."""

from __future__ import annotations

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.site.consent import FEWEST_DIGITS, Agreement
from nnunetv2_federated.flower.deployment.site.proposal_text import describe_here


def show(agreement: Agreement, dataset: str) -> None:
    """Print in words what an approval agrees to."""
    print("\n".join(describe_here(agreement, dataset)), flush=True)


def ask(agreement: Agreement, dataset: str) -> bool:
    """Show in words what is proposed, and return whether somebody at the terminal agrees.

    Raises
    ------
    SettingsError
        If there is no terminal to answer at.
    """
    show(agreement, dataset)
    try:
        return input("take part? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise SettingsError(
            "nobody answered, there is no terminal: agree with --approve "
            f"{agreement.approval()[:FEWEST_DIGITS]}"
        ) from None
