"""Whether folds, cases, patients, references and raw data agree, checked before a long training.

nnU-Net's ``--verify_dataset_integrity`` checks the raw data before planning. Here the content of
``nnUNet_preprocessed`` is checked, which may not fit the raw data or the folds any more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import (
    infer_dataset_class,
    nnUNetDatasetBlosc2,
)

from nnunetv2_federated.federation.case_table import (
    like_patients,
    patients_of,
    read_case_table,
)
from nnunetv2_federated.federation.check import Check, run_check
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import some_cases
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_configuration,
    preprocessed_cases,
)
from nnunetv2_federated.nnunet.data.folds import (
    CASE_TABLE,
    SPLITS_FILE,
    find_case_table,
    fold_of_site,
    read_splits,
    shared_patients,
)
from nnunetv2_federated.nnunet.data.raw_case import declared_values
from nnunetv2_federated.nnunet.data.raw_comparison import REFERENCES, RawComparison

_OUTSIDE = -1
"""Label that nnU-Net's preprocessing gives voxels outside of the body."""
_AXES = 4
"""Channels and three axes; in images of two axes the first of the three has length 1."""


def check_dataset(
    dataset: Dataset, configuration: str, folds: Sequence[int | str], *, segmentation: bool = True
) -> list[str]:
    """Refuse a dataset that contradicts itself; return what its user should know of it.

    Parameters
    ----------
    dataset, configuration, folds
        Dataset, configuration and folds that are to be trained.
    segmentation
        Whether the trained model is validated on reference segmentations.

    Raises
    ------
    SettingsError
        With the first problem, the names of its cases, and how to fix it.
    """
    notable = []
    for check in inspect(dataset, configuration, folds, segmentation=segmentation):
        if not check.ok:
            raise SettingsError(check.detail)
        if check.notable:
            notable.append(check.detail)
    return notable


def inspect(
    dataset: Dataset, configuration: str, folds: Sequence[int | str], *, segmentation: bool = True
) -> Iterator[Check]:
    """Yield the checks of a dataset; :func:`check_dataset` refuses the first that is not ok.

    Every file is read once, even if several folds have its case.
    """
    subject = _Subject(dataset, configuration)
    for fold in folds:
        check = run_check("fold", functools.partial(subject.read_fold, fold))
        yield check
        if not check.ok:  # all later checks need the cases of the folds
            return
    yield from subject.left_out()
    yield run_check("preprocessed cases", subject.files)
    yield from subject.patients()
    if segmentation:
        yield run_check("references", subject.references)
    yield from subject.raw_data()


@dataclass(frozen=True)
class _OpenedCase:
    """What is read from the files of a preprocessed case."""

    image: tuple[int, ...]
    """Shape, (channels, z, y, x)."""
    segmentation: tuple[int, ...]
    """Shape, (1, z, y, x)."""
    lowest: int
    """Lowest label of the segmentation."""
    highest: int

    def problem(self, channels: int, highest: int) -> str | None:
        """Return what does not fit ``dataset.json`` and how to fix it; ``None`` if all fits.

        Parameters
        ----------
        channels
            How many channels ``dataset.json`` declares; 0 if it declares none.
        highest
            Highest label that it declares.
        """
        if self.lowest < _OUTSIDE or self.highest > highest:
            label = self.lowest if self.lowest < _OUTSIDE else self.highest
            return (
                f"has the label {label}, dataset.json declares 0 to {highest}: correct the "
                "segmentation or declare the label, then plan and preprocess again."
            )
        if channels and self.image[0] != channels:
            return (
                f"has {self.image[0]} channels preprocessed, dataset.json names {channels}: plan "
                "and preprocess again."
            )
        if self.image[1:] != self.segmentation[1:] or len(self.image) != _AXES:
            return (
                f"is preprocessed with an image of shape {self.image} and a segmentation of shape "
                f"{self.segmentation}: preprocess again."
            )
        return None


@dataclass(frozen=True)
class _Subject:
    """A dataset that is inspected, in one configuration."""

    dataset: Dataset
    configuration: str
    splits: dict[int | str, tuple[list[str], list[str]]] = field(default_factory=dict)
    """Training and validation cases of the folds that were read."""

    @property
    def name(self) -> str:
        return self.dataset.name

    @cached_property
    def folder(self) -> Path:
        return check_configuration(self.dataset, self.configuration)

    @cached_property
    def cases(self) -> list[str]:
        return preprocessed_cases(self.folder)

    def read_fold(self, fold: int | str) -> str:
        training, validation = fold_of_site(self.dataset, self.configuration, fold)
        self.splits[fold] = training, validation
        return (
            f"{self.name}: {len(training)} training, {len(validation)} validation cases of fold "
            f"{fold}"
        )

    def left_out(self) -> Iterator[Check]:
        if set(self.splits) == {"all"} or not (self.dataset.folder / SPLITS_FILE).is_file():
            return
        named = {
            case for split in read_splits(self.dataset) for part in split.values() for case in part
        }
        unnamed = set(self.cases) - named
        if unnamed:
            seen = (
                f"{some_cases(unnamed)} of {self.name} in no fold of {SPLITS_FILE}: never trained "
                "on"
            )
            yield Check("cases in no fold", True, seen, notable=True)

    def files(self) -> str:
        """Open every case of the folds: the header of its image, and all of its segmentation."""
        kind = infer_dataset_class(str(self.folder))
        if not issubclass(kind, nnUNetDatasetBlosc2):  # what nnU-Net wrote until 2.5
            return f"{len(self.cases)} cases as {kind.__name__} reads them, not opened"
        channels = len(self.dataset.declared.get("channel_names", ()))
        cases = sorted({case for split in self.splits.values() for part in split for case in part})
        reader = kind(str(self.folder), cases)
        highest = max(declared_values(self.dataset.dataset_json))
        for case in cases:
            problem = self._open(reader, case).problem(channels, highest)
            if problem is not None:
                raise SettingsError(f"{case} of {self.name} {problem}")
        return f"{len(cases)} cases of {channels} channels in {self.folder.name}"

    def _open(self, reader: Any, case: str) -> _OpenedCase:  # noqa: ANN401  # nnU-Net's
        try:
            image, segmentation, _, _ = reader.load_case(case)
            values = segmentation[:]
            return _OpenedCase(
                image.shape, segmentation.shape, int(values.min()), int(values.max())
            )
        except Exception as error:  # whatever a damaged file makes blosc2 or pickle raise
            raise SettingsError(
                f"{case} of {self.name} cannot be read ({type(error).__name__}: {error}): "
                f"preprocess {self.configuration} again."
            ) from error

    def references(self) -> str:
        validation = {case for _, cases in self.splits.values() for case in cases}
        ending = str(self.dataset.dataset_json["file_ending"])
        folder = self.dataset.folder / REFERENCES
        missing = {case for case in validation if not (folder / (case + ending)).is_file()}
        if missing:
            raise SettingsError(
                f"{some_cases(missing)} of {self.name} to validate without segmentation in "
                f"{REFERENCES}: run nnUNetv2_preprocess -d {self.name} -c {self.configuration}."
            )
        return f"{len(validation)} segmentations to validate with"

    def patients(self) -> Iterator[Check]:
        path = find_case_table(self.dataset)
        if path is None:
            yield Check("patients", True, f"not known: without {CASE_TABLE} each case is one")
            return
        try:
            rows = read_case_table(path)
        except SettingsError as error:
            yield Check("patients", False, str(error))
            return
        patients, similar = patients_of(rows), like_patients(rows)
        if patients is None and similar:
            seen = (
                f"patients of {self.name} are not known: {path.name} has no column patient, but "
                f"{', '.join(similar)}; name it patient to keep a patient's cases in one fold"
            )
            yield Check("patients", True, seen, notable=True)
        elif patients is None:
            yield Check("patients", True, f"not known: {path.name} has no column patient")
        else:
            yield run_check("patients", lambda: self._patients_apart(patients, path.name))
            without = set(self.cases) - patients.keys()
            if without:
                seen = f"{some_cases(without)} of {self.name} without patient in {path.name}"
                yield Check("cases without patient", True, seen, notable=True)

    def _patients_apart(self, patients: Mapping[str, str], table: str) -> str:
        """Refuse a patient with cases in both parts of a fold; return what was found otherwise."""
        count = len({patients[case] for case in self.cases if case in patients})
        if count == len(self.cases):
            return f"{table} names as many patients as cases, {count}"
        parts = {fold: split for fold, split in self.splits.items() if fold != "all"}
        for fold, split in parts.items():
            both = shared_patients(*split, patients)
            if both:
                raise self._patients_in_both(both, fold, patients)
        listed = ", ".join(map(str, parts))
        apart = f", none in both parts of fold {listed}" if parts else ""
        return f"{count} in {table}{apart}"

    def _patients_in_both(
        self, both: set[str], fold: int | str, patients: Mapping[str, str]
    ) -> SettingsError:
        cases = {case for part in self.splits[fold] for case in part if patients.get(case) in both}
        return SettingsError(
            f"{some_cases(cases)} of {self.name} are of "
            f"{len(both)} patients who are in training and in validation of fold {fold}: "
            f"delete {SPLITS_FILE} to have folds drawn by patient, or train fold all."
        )

    def raw_data(self) -> Iterator[Check]:
        raw = nnUNet_raw.get()
        folder = Path(raw) / self.name if raw else None
        if folder is None or not (folder / "dataset.json").is_file():
            yield Check("raw data", True, "not compared: nnUNet_raw does not have it")
            return
        yield from RawComparison(self.dataset, folder, self.folder, self.cases).checks()
