"""Whether folds, cases, patients, references and raw data agree: looked at before anything long.

nnU-Net's ``--verify_dataset_integrity`` looks at the raw data before it is planned. Here it is what
lies in ``nnUNet_preprocessed`` after that, which other files may have left behind.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import (
    infer_dataset_class,
    nnUNetDatasetBlosc2,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.case_table import like_patients, read_case_table
from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.finding import Finding, look
from nnunetv2_federated.training.dataset import (
    Dataset,
    check_configuration,
    preprocessed_cases,
    read_json,
)
from nnunetv2_federated.training.folds import (
    CASE_TABLE,
    SPLITS_FILE,
    find_case_table,
    fold_of_site,
    known_patients,
    read_splits,
    shared_patients,
    some,
)
from nnunetv2_federated.training.raw_files import channel_gap, training_files

REFERENCES = "gt_segmentations"


def check_dataset(
    dataset: Dataset, configuration: str, fold: int | str, *, segmentation: bool = True
) -> list[str]:
    """Refuse a dataset that does not agree with itself; return what is better said aloud.

    Parameters
    ----------
    dataset, configuration, fold
        What is to be trained.
    segmentation
        Whether the trained model is validated on reference segmentations.

    Raises
    ------
    SettingsError
        With the first thing that is wrong, the names, and how to mend it.
    """
    aloud = []
    for finding in inspect(dataset, configuration, fold, segmentation=segmentation):
        if not finding.good:
            raise SettingsError(finding.seen)
        if finding.aloud:
            aloud.append(finding.seen)
    return aloud


def inspect(
    dataset: Dataset, configuration: str, fold: int | str, *, segmentation: bool = True
) -> Iterator[Finding]:
    """Yield what is found about a dataset, as :func:`check_dataset` judges it."""
    subject = _Subject(dataset, configuration, fold)
    folds = look("fold", subject.folds)
    yield folds
    if not folds.good:  # the others look at its cases
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
    fold: int | str

    @property
    def name(self) -> str:
        return self.dataset.name

    @cached_property
    def folder(self) -> Path:
        return check_configuration(self.dataset, self.configuration)

    @cached_property
    def cases(self) -> list[str]:
        return preprocessed_cases(self.folder)

    @cached_property
    def split(self) -> tuple[list[str], list[str]]:
        return fold_of_site(self.dataset, self.configuration, self.fold)

    def folds(self) -> str:
        training, validation = self.split
        return (
            f"{self.name}: {len(training)} training, {len(validation)} validation cases of fold "
            f"{self.fold}"
        )

    def left_out(self) -> Iterator[Finding]:
        if self.fold == "all" or not (self.dataset.folder / SPLITS_FILE).is_file():
            return
        named = {
            case for split in read_splits(self.dataset) for part in split.values() for case in part
        }
        unnamed = set(self.cases) - named
        if unnamed:
            seen = f"{some(unnamed)} of {self.name} in no fold of {SPLITS_FILE}: never trained on"
            yield Finding("cases in no fold", True, seen, aloud=True)

    def files(self) -> str:
        """Open every case of the fold: of images the header, of segmentations the values."""
        kind = infer_dataset_class(str(self.folder))
        if not issubclass(kind, nnUNetDatasetBlosc2):  # what nnU-Net wrote until 2.5
            return f"{len(self.cases)} cases as {kind.__name__} reads them, not opened"
        channels = len(self.dataset.declared.get("channel_names", ()))
        cases = sorted({*self.split[0], *self.split[1]})
        reader = kind(str(self.folder), cases)
        highest = self._highest_label()
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

    def _highest_label(self) -> int:
        manager = PlansManager(self.dataset.plans).get_label_manager(self.dataset.dataset_json)
        ignored = [manager.ignore_label] if manager.has_ignore_label else []
        return max(int(value) for value in (*manager.all_labels, *ignored))

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
        validation = self.split[1]
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
        table = find_case_table(self.dataset)
        if table is None:
            yield Finding("patients", True, f"not known: without {CASE_TABLE} each case is one")
            return
        others = look("patients", lambda: ", ".join(like_patients(read_case_table(table))))
        if others.good and others.seen:
            seen = (
                f"patients of {self.name} are not known: {table.name} has no column patient, but "
                f"{others.seen}; name it patient to keep a patient's cases in one fold"
            )
            yield Finding("patients", True, seen, aloud=True)
            return
        known = look("patients", lambda: self._patients_apart(table.name))
        yield known
        patients = known_patients(self.dataset) if known.good else None
        without = set(self.cases) - patients.keys() if patients is not None else None
        if without:
            seen = f"{some(without)} of {self.name} without patient in {table.name}"
            yield Finding("cases without patient", True, seen, aloud=True)

    def _patients_apart(self, table: str) -> str:
        patients = known_patients(self.dataset)
        if patients is None:
            return f"not known: {table} has no column patient"
        count = len({patients[case] for case in self.cases if case in patients})
        if count == len(self.cases):
            return f"{table} names as many patients as cases, {count}"
        if self.fold == "all":
            return f"{count} in {table}"
        both = shared_patients(*self.split, patients)
        if both:
            cases = {case for part in self.split for case in part if patients.get(case) in both}
            raise SettingsError(
                f"{some(cases)} of {self.name} are of "
                f"{len(both)} patients who are in training and in validation of fold {self.fold}: "
                f"delete {SPLITS_FILE} to have folds drawn by patient, or train fold all."
            )
        return f"{count} in {table}, none in both parts of fold {self.fold}"

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
        now = declared_of(read_json(raw / "dataset.json"))
        found = find_difference(now, self.dataset.declared)
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
        for case in set(self.cases) & set(files):
            copy = folder / (case + ending)
            if copy.is_file():
                compared += 1
                if not filecmp.cmp(copy, files[case]["label"], shallow=False):
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
            newest = max(Path(path).stat().st_mtime for path in _files(files[case]))
            own = [self.folder / f"{case}{ending}" for ending in (".b2nd", ".npz", ".npy")]
            if any(path.stat().st_mtime < newest for path in own if path.is_file()):
                found.add(case)
        return found


_OUTSIDE = -1
"""What nnU-Net's preprocessing gives voxels that are outside of the body."""
_AXES = 4
"""Channels and three axes, of which nnU-Net gives images of two one of length 1."""


def _files(case: dict[str, Any]) -> Sequence[str]:
    return [*map(str, case["images"]), str(case["label"])]
