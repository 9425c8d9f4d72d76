"""Warn of what a dataset may have, but probably should not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nnunetv2_cls.conversion.source import Case, Source
from nnunetv2_cls.splits import FOLDS


def source_warnings(source: Source) -> list[str]:
    """Return the warnings about a source; they are complete once all its cases were read."""
    return [
        *_softened_masks(source),
        *_absent_classes(source),
        *_unknown_patients(source),
        *_patients_on_both_sides(source),
        *_tested_patients(source),
    ]


def _softened_masks(source: Source) -> Iterator[str]:
    if source.softened:
        yield (
            f"{len(source.softened)} masks have grey edges (first {source.softened[0]}): they "
            "were cut at half of white, 128."
        )


def _absent_classes(source: Source) -> Iterator[str]:
    present = {case.klass for case in source.training}
    if absent := [klass for klass in source.classes if klass not in present]:
        yield (
            f"no training case is of class {', '.join(absent)}: a site of a federation may "
            "lack a class, but nobody can learn it here alone."
        )


def _unknown_patients(source: Source) -> Iterator[str]:
    if unknown := [case for case in source.training if case.patient is None]:
        yield (
            f"the patients of {len(unknown)} of {len(source.training)} training images are "
            f"unknown (first {unknown[0].origin.name}): each counts as a patient of its own, "
            "so that images of one patient may be in training and in validation. Give a table "
            f"with the columns file and patient with --patients.{source.patients_hint}"
        )


def _patients_on_both_sides(source: Source) -> Iterator[str]:
    patients = {case.name: case.patient for case in source.training}
    for split in source.splits or ():
        train, val = ({patients.get(name) for name in split[p]} - {None} for p in ("train", "val"))
        if both := sorted(train & val, key=str):
            yield (
                f"the source's own split has {len(both)} patients in training and in "
                f"validation (first {both[0]}): validation is not independent."
            )


def _tested_patients(source: Source) -> Iterator[str]:
    tested = {case.patient for case in source.test} - {None}
    if shared := sorted(tested & {case.patient for case in source.training}, key=str):
        yield (
            f"{len(shared)} patients have images in training and in the test set (first "
            f"{shared[0]}): the test set is not independent."
        )


def fold_warnings(cases: Sequence[Case]) -> list[str]:
    """Return a warning for each class that has too few patients for every fold."""
    warnings = []
    for klass in sorted({str(case.klass) for case in cases}):
        patients = {case.patient or case.name for case in cases if case.klass == klass}
        if len(patients) < FOLDS:
            warnings.append(
                f"class {klass} has {len(patients)} patients: not all of the {FOLDS} folds have "
                "one for validation."
            )
    return warnings


def pixel_warnings(types: Mapping[str, int], constant: int) -> list[str]:
    """Return the warnings about the pixels of a dataset.

    Parameters
    ----------
    types
        Number of images of each NumPy type.
    constant
        Number of images that have one value everywhere.
    """
    warnings = []
    if constant:
        warnings.append(f"{constant} images have one value everywhere: they show nothing.")
    if floats := types.get("float32"):
        warnings.append(
            f"{floats} images have negative values, fractions or values above 65535: "
            "the images are TIFF files of 32-bit floats, of about 7 digits."
        )
    if len(types) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
        warnings.append(
            f"the images differ in type ({counts}): nnU-Net's z-score of each image makes them "
            "comparable, other normalisations do not."
        )
    return warnings
