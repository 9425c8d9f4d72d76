"""Five folds that keep a patient together and the classes in proportion."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_cls import splits
from nnunetv2_cls.conversion.source import Case, Splits
from nnunetv2_cls.splits import FOLDS


def draw_folds(cases: Sequence[Case]) -> Splits:
    """Draw patient-grouped, class-stratified folds, independent of the order of the cases.

    A site may have fewer patients than there are folds: the last folds then validate nothing.
    """
    names = sorted(case.name for case in cases)
    folds = splits.draw_folds(
        {case.name: str(case.klass) for case in cases},
        {case.name: case.patient for case in cases if case.patient},
    )
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
