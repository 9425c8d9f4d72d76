"""Whether a preprocessed dataset still is what its raw dataset in ``nnUNet_raw`` makes of it."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.federation.check import Check, run_check
from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import some_cases
from nnunetv2_federated.nnunet.data.dataset import Dataset, read_json
from nnunetv2_federated.nnunet.data.dataset_json import check_declaration
from nnunetv2_federated.nnunet.data.raw_files import CaseFiles, channel_gap, training_files

REFERENCES = "gt_segmentations"
"""Folder in which nnU-Net keeps copies of the reference segmentations."""
_ENDINGS_OF_IMAGES = (".b2nd", ".npz", ".npy")


@dataclass(frozen=True)
class RawComparison:
    """Compares the preprocessed cases of a configuration with the raw dataset."""

    dataset: Dataset
    raw: Path
    """Folder of the dataset in ``nnUNet_raw``."""
    preprocessed: Path
    """Folder of the configuration's preprocessed cases."""
    cases: Sequence[str]
    """Preprocessed cases."""

    def checks(self) -> Iterator[Check]:
        """Yield the checks; ends early where the raw dataset cannot be read."""
        declaration = run_check("dataset.json", self._same_declaration)
        yield declaration
        if not declaration.ok:
            return
        try:
            files = training_files(self.raw)
        except (OSError, KeyError) as error:
            yield Check("raw data", False, f"{self.raw}: {error}")
            return
        yield run_check("channels", lambda: self._counted_channels(files))
        yield run_check("labels", lambda: self._same_labels(files))
        for cases, what in (
            (set(files) - set(self.cases), "in nnUNet_raw, but not preprocessed"),
            (set(self.cases) - set(files), "preprocessed, but not in nnUNet_raw any more"),
            (self._without_image(files), "segmented in nnUNet_raw, but without image"),
            (self._older(files), "older than the file in nnUNet_raw it was preprocessed from"),
        ):
            if cases:
                seen = f"{some_cases(cases)} of {self.dataset.name} {what}"
                yield Check("raw data", True, seen, notable=True)

    @property
    def _file_ending(self) -> str:
        return str(self.dataset.dataset_json["file_ending"])

    def _same_declaration(self) -> str:
        path = self.raw / "dataset.json"
        now = read_json(path)
        check_declaration(now, str(path))
        difference = find_difference(declared_of(now), self.dataset.declared)
        if difference is not None:
            reason = f" ({difference.hint})" if difference.hint else ""
            raise SettingsError(
                f"{difference.field} of {self.dataset.name} is {difference.ours} in nnUNet_raw and "
                f"was {difference.theirs} when it was preprocessed{reason}: plan and preprocess "
                "again."
            )
        return "as in nnUNet_raw"

    def _counted_channels(self, files: Mapping[str, CaseFiles]) -> str:
        wrong = [case for case, of_case in files.items() if channel_gap(of_case.images)]
        if wrong:
            raise SettingsError(
                f"{some_cases(wrong)} of {self.dataset.name} in nnUNet_raw with channels that are "
                "not numbered 0000, 0001, ... without a gap: name them so, then plan and "
                "preprocess again."
            )
        return f"numbered without a gap in {len(files)} cases"

    def _same_labels(self, files: Mapping[str, CaseFiles]) -> str:
        """Compare the raw segmentations byte by byte with nnU-Net's copies."""
        folder = self.dataset.folder / REFERENCES
        both = set(self.cases) & set(files)
        without = {case for case in both if not Path(files[case].label).is_file()}
        if without:
            raise SettingsError(
                f"{some_cases(without)} of {self.dataset.name} in nnUNet_raw without "
                "segmentation: restore it, or take the images out, then plan and preprocess again."
            )
        copies = {case: folder / (case + self._file_ending) for case in both}
        present = [case for case in both if copies[case].is_file()]
        other = [
            case
            for case in present
            if not filecmp.cmp(copies[case], Path(files[case].label), shallow=False)
        ]
        if other:
            raise SettingsError(
                f"the segmentation of {some_cases(other)} of {self.dataset.name} in nnUNet_raw is "
                f"not the one that was preprocessed: delete {folder} and run nnUNetv2_preprocess "
                "again."
            )
        return f"{len(present)} segmentations as in nnUNet_raw"

    def _without_image(self, files: Mapping[str, CaseFiles]) -> set[str]:
        masks = (path.name for path in (self.raw / "labelsTr").glob(f"*{self._file_ending}"))
        return {mask.removesuffix(self._file_ending) for mask in masks} - set(files)

    def _older(self, files: Mapping[str, CaseFiles]) -> set[str]:
        """Return cases that were preprocessed before one of their raw files was written."""
        return {case for case in set(self.cases) & set(files) if self._is_older(case, files[case])}

    def _is_older(self, case: str, files: CaseFiles) -> bool:
        sources = [Path(path) for path in (*files.images, files.label)]
        newest = max(path.stat().st_mtime for path in sources if path.is_file())
        results = [self.preprocessed / f"{case}{ending}" for ending in _ENDINGS_OF_IMAGES]
        return any(path.stat().st_mtime < newest for path in results if path.is_file())
