"""Five folds that keep a patient together and the classes in proportion."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.model_selection import StratifiedGroupKFold

from nnunetv2_cls.convert.source import Case, Splits
from nnunetv2_cls.errors import ClsError

FOLDS = 5
SEED = 12345


def draw_folds(cases: Sequence[Case]) -> Splits:
    """Draw patient-grouped, class-stratified folds, independent of the order of the cases.

    Raises
    ------
    ClsError
        If a class has fewer patients than there are folds.
    """
    cases = sorted(cases, key=lambda case: case.name)
    names = [case.name for case in cases]
    classes = [str(case.klass) for case in cases]
    patients = [case.patient for case in cases]
    for klass in sorted(set(classes)):
        count = len({p for p, k in zip(patients, classes, strict=True) if k == klass})
        if count < FOLDS:
            raise ClsError(
                f"class {klass} has {count} patients: {FOLDS} folds need at least {FOLDS} patients "
                "of every class; add images of more patients."
            )
    folds = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=SEED)
    return [
        {"train": [names[i] for i in train], "val": [names[i] for i in val]}
        for train, val in folds.split(names, classes, patients)
    ]
