"""What attacks on privacy found, as tables and in words."""

from __future__ import annotations

from collections.abc import Mapping

from nnunetv2_federated.federation.privacy_attacks import CanaryAudit, MembershipTest
from nnunetv2_federated.report.text import markdown_table

Rows = tuple[list[str], list[list[str]]]
"""Header and rows of a table."""

ATTACKED = (
    "How well a threshold of a model's loss tells patients it was trained on from others: an AUC "
    "of 0.5 tells nothing. What this attack does not find, a better one may."
)
_CHANCE = 0.025
"""Largest p-value that is called a difference: an interval of 95 % has as much on each side."""


def membership_verdict(found: MembershipTest) -> str:
    """Say what a membership test shows, and what it does not."""
    counted = f"{found.members} {found.unit}s of the training and {found.others} others"
    area = f"AUC {found.auc:.2f}, 95 % interval {found.low:.2f} to {found.high:.2f}"
    if found.p_value < _CHANCE:
        return (
            f"This attack tells {found.unit}s of the training from others ({area}, {counted}): the "
            f"model remembers some. It finds {found.found_at_10:.0%} of them with at most 10 % "
            "false alarms."
        )
    return (
        f"This attack tells nothing by which {found.unit}s of the training could be known ({area}, "
        f"{counted}). An area up to {found.high:.2f}, or a better attack, is not excluded."
    )


def canary_verdict(found: CanaryAudit) -> str:
    """Say what an audit with canaries shows, and what it does not."""
    if found.contradicts:
        return (
            f"Epsilon is at least {found.bound:.2f} and not {found.epsilon:.2f}, with "
            f"{found.confidence:.0%} confidence: what is promised is not kept. Do not train with "
            "this installation."
        )
    limit = (
        f" So many canaries show {found.most:.2f} at most: nothing could have contradicted this "
        "epsilon; use more of them, or more noise."
        if found.most <= found.epsilon
        else ""
    )
    return (
        f"Epsilon is at least {found.bound:.2f}, with {found.confidence:.0%} confidence, which "
        f"does not contradict {found.epsilon:.2f}.{limit}"
    )


def canary_rows(found: CanaryAudit) -> Rows:
    """Return header and row of an audit with canaries."""
    header = [
        *("canaries", "took part", "guesses", "right", "epsilon at least", "epsilon promised"),
        *("delta", "most that can be shown"),
    ]
    return header, [
        [
            *(str(number) for number in (found.canaries, found.included)),
            *(str(number) for number in (found.guesses, found.right)),
            *(f"{number:.2f}" for number in (found.bound, found.epsilon)),
            *(f"{found.delta:g}", f"{found.most:.2f}"),
        ]
    ]


def membership_rows(attacks: Mapping[str, MembershipTest]) -> Rows:
    """Return header and rows of membership tests, by the name of the model."""
    header = [
        *("model", "trained on", "others", "AUC", "95 % interval", "p"),
        *("found at 1 % false alarms", "at 10 %", "compared with a reference"),
    ]
    return header, [
        [
            *(name, f"{found.members} {found.unit}s", str(found.others)),
            *(f"{found.auc:.3f}", f"{found.low:.3f} to {found.high:.3f}", f"{found.p_value:.2g}"),
            *(f"{found.found_at_1:.1%}", f"{found.found_at_10:.1%}"),
            "yes" if found.calibrated else "no",
        ]
        for name, found in attacks.items()
    ]


def canary_section(found: CanaryAudit) -> str:
    """Return the section of an audit with canaries, in Markdown."""
    parts = ("## Canaries", markdown_table(*canary_rows(found)), canary_verdict(found))
    return "\n\n".join(parts) + "\n"


def membership_section(name: str, found: MembershipTest) -> str:
    """Return the section of one model's membership test, in Markdown."""
    table = markdown_table(*membership_rows({name: found}))
    return "\n\n".join(("## Membership inference", table, membership_verdict(found))) + "\n"
