"""Rules of joint planning: what sites must declare alike, and when two plans are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_federated.federation.declared import find_difference
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.messages import SiteSurvey
from nnunetv2_federated.federation.names import ALLOWED, is_plain_name
from nnunetv2_federated.federation.text import clean

_HINTS = {
    "reader_writer": "nnU-Net takes another reader where its usual one cannot read a site's first "
    "training image (that site's log names it): fix that image, or set "
    "overwrite_image_reader_writer"
}


def hash_plans(plans: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plans without the dataset's name, which differs between sites."""
    content = {key: value for key, value in plans.items() if key != "dataset_name"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_names(plans: Mapping[str, Any], site: str) -> None:
    """Make sure that names in plans that become files or folders at a site are plain.

    Raises
    ------
    SiteError
        If the plans' name or a data identifier is not plain.
    """
    names = [plans.get("plans_name")]
    names += [c.get("data_identifier", "none") for c in plans.get("configurations", {}).values()]
    for name in names:
        if not is_plain_name(name):
            raise SiteError(
                f"site {site}: {clean(repr(name), 80)} cannot be a name of plans: use {ALLOWED}."
            )


def check_agreement(surveys: Sequence[SiteSurvey]) -> dict[str, Any]:
    """Return what all sites declare alike.

    Raises
    ------
    SiteError
        If a site declares something else than the first; names both sites and the field.
    """
    first = surveys[0]
    for other in surveys[1:]:
        check_declared(other, first.declared(), f"site {first.site}")
    return first.declared()


def check_declared(survey: SiteSurvey, expected: Mapping[str, Any], whose: str) -> None:
    """Make sure that a site declares what is expected.

    Parameters
    ----------
    survey
        What the site declares.
    expected
        What all sites must declare.
    whose
        Who expects it, for the message.

    Raises
    ------
    SiteError
        If a field differs; names the site and the field.
    """
    difference = find_difference(survey.declared(), expected)
    if difference is None:
        return
    reason = difference.hint or _HINTS.get(difference.field, "")
    raise SiteError(
        f"site {survey.site}: {difference.field} is {difference.ours}, but {difference.theirs} at "
        f"{whose}{'; ' + reason if reason else ''}; all sites need the same; make "
        "dataset.json (or the installed version) equal at all sites."
    )
