"""Draw the five folds of a new dataset."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_cls import splits
from nnunetv2_cls.conversion.source import Case
from nnunetv2_cls.splits import FOLDS, Splits


def draw_folds(cases: Sequence[Case]) -> Splits:
    """Draw folds that keep a patient together and the classes in proportion.

    They do not depend on the order of the cases. If there are fewer patients than folds, as a site
    may have, the last folds have no validation case.
    """
    names = sorted(case.name for case in cases)
    folds = splits.draw_folds(
        {case.name: str(case.klass) for case in cases},
        {case.name: case.patient for case in cases if case.patient},
    )
    return [*folds, *({"train": names, "val": []} for _ in range(FOLDS - len(folds)))]
