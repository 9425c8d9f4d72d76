"""Whether folds, cases, patients, references and raw data agree: looked at before anything long.

nnU-Net's ``--verify_dataset_integrity`` looks at the raw data before it is planned. Here it is what
lies in ``nnUNet_preprocessed`` after that, which other files may have left behind.
"""

from __future__ import annotations

import filecmp
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
from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.finding import Finding, look
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_configuration,
    preprocessed_cases,
    read_json,
)
from nnunetv2_federated.nnunet.data.dataset_json import check_declaration
from nnunetv2_federated.nnunet.data.folds import (
    CASE_TABLE,
    SPLITS_FILE,
    find_case_table,
    fold_of_site,
    read_splits,
    shared_patients,
    some,
)
from nnunetv2_federated.nnunet.data.raw_case import declared_values
from nnunetv2_federated.nnunet.data.raw_files import channel_gap, training_files

REFERENCES = "gt_segmentations"


def check_dataset(
    dataset: Dataset, configuration: str, folds: Sequence[int | str], *, segmentation: bool = True
) -> list[str]:
    """Refuse a dataset that does not agree with itself; return what is better said aloud.

    Parameters
    ----------
    dataset, configuration, folds
        What is to be trained.
    segmentation
        Whether the trained model is validated on reference segmentations.

    Raises
    ------
    SettingsError
        With the first thing that is wrong, the names, and how to mend it.
    """
    aloud = []
    for finding in inspect(dataset, configuration, folds, segmentation=segmentation):
        if not finding.good:
            raise SettingsError(finding.seen)
        if finding.aloud:
            aloud.append(finding.seen)
    return aloud


def inspect(
    dataset: Dataset, configuration: str, folds: Sequence[int | str], *, segmentation: bool = True
) -> Iterator[Finding]:
    """Yield what is found about a dataset, as :func:`check_dataset` judges it.

    Every file is read once, however many folds it is in.
    """
    subject = _Subject(dataset, configuration)
    for fold in folds:
        found = look("fold", functools.partial(subject.read_fold, fold))
        yield found
        if not found.good:  # the others look at its cases
            return
    yield from subject.left_out()
    yield look("preprocessed cases", subject.files)
    yield from subject.patients()
    if segmentation:
        yield look("references", subject.references)
    yield from subject.raw_data()


@dataclass(frozen=True)
class _Subject:
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

    def left_out(self) -> Iterator[Finding]:
        if set(self.splits) == {"all"} or not (self.dataset.folder / SPLITS_FILE).is_file():
            return
        named = {
            case for split in read_splits(self.dataset) for part in split.values() for case in part
        }
        unnamed = set(self.cases) - named
        if unnamed:
            seen = f"{some(unnamed)} of {self.name} in no fold of {SPLITS_FILE}: never trained on"
            yield Finding("cases in no fold", True, seen, aloud=True)

    def files(self) -> str:
        """Open every case of the folds: of images the header, of segmentations the values."""
        kind = infer_dataset_class(str(self.folder))
        if not issubclass(kind, nnUNetDatasetBlosc2):  # what nnU-Net wrote until 2.5
            return f"{len(self.cases)} cases as {kind.__name__} reads them, not opened"
        channels = len(self.dataset.declared.get("channel_names", ()))
        cases = sorted({case for split in self.splits.values() for part in split for case in part})
        reader = kind(str(self.folder), cases)
        highest = max(declared_values(self.dataset.dataset_json))
        for case in cases:
            image, segmentation, low, high = self._look_into(reader, case)
            if low < _OUTSIDE or high > highest:
                raise SettingsError(
                    f"{case} of {self.name} has the label {low if low < _OUTSIDE else high}, "
                    f"dataset.json declares 0 to {highest}: correct the segmentation or declare "
                    "the label, then plan and preprocess again."
                )
            if channels and image[0] != channels:
                raise SettingsError(
                    f"{case} of {self.name} has {image[0]} channels preprocessed, dataset.json "
                    f"names {channels}: plan and preprocess again."
                )
            if image[1:] != segmentation[1:] or len(image) != _AXES:
                raise SettingsError(
                    f"{case} of {self.name} is preprocessed with an image of shape {image} and a "
                    f"segmentation of shape {segmentation}: preprocess again."
                )
        return f"{len(cases)} cases of {channels} channels in {self.folder.name}"

    def _look_into(
        self,
        reader: Any,  # noqa: ANN401  # nnU-Net's
        case: str,
    ) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
        """Return the shapes of image and segmentation, and its lowest and highest label."""
        try:
            image, segmentation, _, _ = reader.load_case(case)
            values = segmentation[:]
            return image.shape, segmentation.shape, int(values.min()), int(values.max())
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
                f"{some(missing)} of {self.name} to validate without segmentation in {REFERENCES}: "
                f"run nnUNetv2_preprocess -d {self.name} -c {self.configuration}."
            )
        return f"{len(validation)} segmentations to validate with"

    def patients(self) -> Iterator[Finding]:
        path = find_case_table(self.dataset)
        if path is None:
            yield Finding("patients", True, f"not known: without {CASE_TABLE} each case is one")
            return
        try:
            rows = read_case_table(path)
        except SettingsError as error:
            yield Finding("patients", False, str(error))
            return
        patients, others = patients_of(rows), like_patients(rows)
        if patients is None and others:
            seen = (
                f"patients of {self.name} are not known: {path.name} has no column patient, but "
                f"{', '.join(others)}; name it patient to keep a patient's cases in one fold"
            )
            yield Finding("patients", True, seen, aloud=True)
        elif patients is None:
            yield Finding("patients", True, f"not known: {path.name} has no column patient")
        else:
            yield look("patients", lambda: self._apart(patients, path.name))
            without = set(self.cases) - patients.keys()
            if without:
                seen = f"{some(without)} of {self.name} without patient in {path.name}"
                yield Finding("cases without patient", True, seen, aloud=True)

    def _apart(self, patients: Mapping[str, str], table: str) -> str:
        count = len({patients[case] for case in self.cases if case in patients})
        if count == len(self.cases):
            return f"{table} names as many patients as cases, {count}"
        parts = {fold: split for fold, split in self.splits.items() if fold != "all"}
        for fold, split in parts.items():
            both = shared_patients(*split, patients)
            if both:
                cases = {case for part in split for case in part if patients.get(case) in both}
                raise SettingsError(
                    f"{some(cases)} of {self.name} are of "
                    f"{len(both)} patients who are in training and in validation of fold {fold}: "
                    f"delete {SPLITS_FILE} to have folds drawn by patient, or train fold all."
                )
        listed = ", ".join(map(str, parts))
        apart = f", none in both parts of fold {listed}" if parts else ""
        return f"{count} in {table}{apart}"

    def raw_data(self) -> Iterator[Finding]:
        raw = nnUNet_raw.get()
        folder = Path(raw) / self.name if raw else None
        if folder is None or not (folder / "dataset.json").is_file():
            yield Finding("raw data", True, "not compared: nnUNet_raw does not have it")
            return
        declared = look("dataset.json", lambda: self._same_declaration(folder))
        yield declared
        if not declared.good:
            return
        try:
            files = training_files(folder)
        except (OSError, KeyError) as error:
            yield Finding("raw data", False, f"{folder}: {error}")
            return
        yield look("channels", lambda: self._counted_channels(files))
        yield look("labels", lambda: self._same_labels(files))
        for names, what in (
            (set(files) - set(self.cases), "in nnUNet_raw, but not preprocessed"),
            (set(self.cases) - set(files), "preprocessed, but not in nnUNet_raw any more"),
            (self._without_image(folder, files), "segmented in nnUNet_raw, but without image"),
            (self._older(files), "older than the file in nnUNet_raw it was preprocessed from"),
        ):
            if names:
                seen = f"{some(names)} of {self.name} {what}"
                yield Finding("raw data", True, seen, aloud=True)

    def _same_declaration(self, raw: Path) -> str:
        path = raw / "dataset.json"
        now = read_json(path)
        check_declaration(now, str(path))
        found = find_difference(declared_of(now), self.dataset.declared)
        if found is not None:
            reason = f" ({found.hint})" if found.hint else ""
            raise SettingsError(
                f"{found.field} of {self.name} is {found.ours} in nnUNet_raw and was "
                f"{found.theirs} when it was preprocessed{reason}: plan and preprocess again."
            )
        return "as in nnUNet_raw"

    def _counted_channels(self, files: dict[str, dict[str, Any]]) -> str:
        wrong = [case for case, of_case in files.items() if channel_gap(of_case["images"])]
        if wrong:
            raise SettingsError(
                f"{some(wrong)} of {self.name} in nnUNet_raw with channels that are not numbered "
                "0000, 0001, ... without a gap: name them so, then plan and preprocess again."
            )
        return f"numbered without a gap in {len(files)} cases"

    def _same_labels(self, files: dict[str, dict[str, Any]]) -> str:
        folder = self.dataset.folder / REFERENCES
        ending = str(self.dataset.dataset_json["file_ending"])
        compared, other = 0, set()
        both = set(self.cases) & set(files)
        without = {case for case in both if not Path(files[case]["label"]).is_file()}
        if without:
            raise SettingsError(
                f"{some(without)} of {self.name} in nnUNet_raw without segmentation: restore it, "
                "or take the images out, then plan and preprocess again."
            )
        for case in both:
            copy, label = folder / (case + ending), Path(files[case]["label"])
            if copy.is_file():
                compared += 1
                if not filecmp.cmp(copy, label, shallow=False):
                    other.add(case)
        if other:
            raise SettingsError(
                f"the segmentation of {some(other)} of {self.name} in nnUNet_raw is not the one "
                f"that was preprocessed: delete {folder} and run nnUNetv2_preprocess again."
            )
        return f"{compared} segmentations as in nnUNet_raw"

    def _without_image(self, raw: Path, files: dict[str, dict[str, Any]]) -> set[str]:
        ending = str(self.dataset.dataset_json["file_ending"])
        masks = (path.name for path in (raw / "labelsTr").glob(f"*{ending}"))
        return {mask.removesuffix(ending) for mask in masks} - set(files)

    def _older(self, files: dict[str, dict[str, Any]]) -> set[str]:
        found = set()
        for case in set(self.cases) & set(files):
            sources = [Path(path) for path in (*files[case]["images"], files[case]["label"])]
            newest = max(path.stat().st_mtime for path in sources if path.is_file())
            own = [self.folder / f"{case}{ending}" for ending in (".b2nd", ".npz", ".npy")]
            if any(path.stat().st_mtime < newest for path in own if path.is_file()):
                found.add(case)
        return found


_OUTSIDE = -1
"""What nnU-Net's preprocessing gives voxels that are outside of the body."""
_AXES = 4
"""Channels and three axes, of which nnU-Net gives images of two one of length 1."""
