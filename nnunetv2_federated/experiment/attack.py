"""``nnUNetv2_federated_attack``: attacks on a promise of privacy, and on a finished model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.experiment.attacked_model import (
    AttackedModel,
    Target,
    a_trainer,
    find_model,
    load_weights,
    members_and_others,
    write_found,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.privacy_attacks import MEMBERSHIP_FILE, MembershipTest
from nnunetv2_federated.nnunet.evaluation.case_losses import CaseLosses
from nnunetv2_federated.nnunet.privacy.membership import (
    calibrate,
    mean_by_patient,
    membership_test,
)
from nnunetv2_federated.nnunet.privacy.patients import patients_of_site
from nnunetv2_federated.report.privacy_attacks import membership_section

_FEWEST = 2
"""Fewest patients of members and of others."""


@dataclass(frozen=True)
class MembershipSettings:
    """How a model's membership is tested."""

    site: str | None = None
    """Site of a federation on this machine; ``None`` for all cases of the dataset."""
    reference: Path | None = None
    """Checkpoint of a model that was trained on none of the cases; ``None`` to compare losses as
    they are."""
    batches: int = 4
    """Number of batches of two patches of each case."""


def infer_membership(
    target: Target, settings: MembershipSettings
) -> tuple[MembershipTest, AttackedModel]:
    """Look whether a finished model's losses tell whom it was trained on.

    Parameters
    ----------
    target
        Model, and dataset whose cases are known to have been trained on or not.
    settings
        How it is tested.

    Returns
    -------
    tuple
        What was found, and the model.

    Raises
    ------
    SettingsError
        If there is no such model, too few patients to compare, or a loss is not finite.
    """
    model = find_model(target)
    members, others = members_and_others(model, settings.site)
    patients = patients_of_site(model.dataset, members)
    strangers = patients_of_site(model.dataset, others).cases
    if min(len(patients.cases), len(strangers)) < _FEWEST:
        raise SettingsError(
            f"{len(patients.cases)} patients were trained on and {len(strangers)} were not: at "
            f"least {_FEWEST} of each can be compared; attack a model of another fold or more "
            "sites."
        )
    losses = _losses(model, settings, [*members, *others])
    found = membership_test(
        mean_by_patient(losses, patients.cases),
        mean_by_patient(losses, strangers),
        calibrated=settings.reference is not None,
        unit=patients.unit,
    )
    return found, model


def _losses(
    model: AttackedModel, settings: MembershipSettings, cases: Sequence[str]
) -> dict[str, float]:
    """Return the loss of each case, less that of the reference model if there is one."""
    with a_trainer(model.run, model.dataset) as trainer:
        losses = CaseLosses(trainer, cases, settings.batches)
        load_weights(trainer, model.checkpoint)
        found = {case: losses.of(case) for case in cases}
        if settings.reference is not None:
            load_weights(trainer, settings.reference)
            found = calibrate(found, {case: losses.of(case) for case in cases})
    bad = [case for case, loss in found.items() if not math.isfinite(loss)]
    if bad:
        raise SettingsError(
            f"the loss of {bad[0]} is {found[bad[0]]}: the training of this model diverged; attack "
            "another."
        )
    return found


def write_membership(found: MembershipTest, model: AttackedModel, folder: Path | None) -> Path:
    """Write what was found as JSON and as a section in Markdown; return the first file.

    Parameters
    ----------
    found, model
        What :func:`infer_membership` returned.
    folder
        Folder of the files; ``None`` for that of the model's fold.

    Raises
    ------
    SettingsError
        If the folder cannot be written.
    """
    path = (folder or model.folder) / MEMBERSHIP_FILE
    write_found(path, found, membership_section(model.name, found))
    return path
