"""Five folds that keep a patient together and the classes in proportion."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from nnunetv2_cls.convert.source import Case, Splits

FOLDS = 5
SEED = 12345


def draw_folds(cases: Sequence[Case]) -> Splits:
    """Draw patient-grouped, class-stratified folds, independent of the order of the cases.

    A site may have fewer patients than there are folds: the last folds then validate nothing.
    """
    cases = sorted(cases, key=lambda case: case.name)
    names = [case.name for case in cases]
    classes = [str(case.klass) for case in cases]
    patients = [case.patient or case.name for case in cases]
    count = min(FOLDS, len(set(patients)))
    folds: Splits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `fold_warnings` says it of patients
        if count > 1:
            folds = [
                {"train": [names[i] for i in train], "val": [names[i] for i in val]}
                for train, val in _folder(classes, count).split(names, classes, patients)
            ]
    return [*folds, *({"train": names, "val": []} for _ in range(FOLDS - len(folds)))]


def fold_warnings(cases: Sequence[Case]) -> list[str]:
    """Say which classes have too few patients for every fold."""
    found = []
    for klass in sorted({str(case.klass) for case in cases}):
        patients = {case.patient or case.name for case in cases if case.klass == klass}
        if len(patients) < FOLDS:
            found.append(
                f"class {klass} has {len(patients)} patients: not all of the {FOLDS} folds have "
                "one for validation."
            )
    return found


def _folder(classes: Sequence[str], count: int) -> StratifiedGroupKFold | GroupKFold:
    # stratification needs a class with as many cases as there are folds
    if max(Counter(classes).values()) < count:
        return GroupKFold(n_splits=count)
    return StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=SEED)
