"""What sites have promised their patients, as a table and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nnunetv2_federated.federation.messages import PrivacyTerms

PROMISED = (
    "Whoever sees what left a site learns about the same whether any one patient took part: the "
    "probability of any outcome changes at most by the factor exp(epsilon), but for delta. Not "
    "covered: plans and fingerprint, the number of patients, pretrained weights, validation cases, "
    "the choice of settings, and that a site as a whole took part."
)


def privacy_rows(
    promises: Mapping[str, Iterable[tuple[str, PrivacyTerms]]],
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of promises.

    Parameters
    ----------
    promises
        Site and promise, by the name of the model.
    """
    header = [
        *("model", "site", "protected", "epsilon", "replace-one", "delta", "all trainings"),
        *("noise", "clip", "probability", "iterations", "told of validation cases", "accountant"),
    ]
    return header, [
        [
            *(model, site, f"{terms.patients} {terms.unit}s"),
            *(f"{terms.epsilon:.2f}", f"{terms.epsilon_replace_one:.2f}", f"{terms.delta:.2g}"),
            _spent(terms),
            *(f"{terms.noise_multiplier:.3g}", f"{terms.clip:g}", f"{terms.probability:.3g}"),
            str(terms.iterations),
            "losses and counts" if terms.told_of_validation == "clear" else "nothing",
            terms.accountant,
        ]
        for model, sites in promises.items()
        for site, terms in sites
    ]


def _spent(terms: PrivacyTerms) -> str:
    budget = "" if terms.max_epsilon is None else f" of {terms.max_epsilon:g}"
    return f"{terms.epsilon_spent:.2f}{budget}"
