"""Raw cases of a site with their references and patients; nothing of it needs preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import Subset
from nnunetv2_federated.federation.text import clean, some_cases
from nnunetv2_federated.nnunet.data.dataset import Dataset, read_json
from nnunetv2_federated.nnunet.data.dataset_json import check_declaration
from nnunetv2_federated.nnunet.data.raw_files import channel_gap
from nnunetv2_federated.nnunet.evaluation.tester import Tester, images_tr, images_ts
from nnunetv2_federated.nnunet.privacy.patients import Patients, patients_of_site

_WHY = "what is told of an evaluation stands for patients"


@dataclass(frozen=True)
class Cases:
    """Raw cases with their references."""

    images: Mapping[str, list[str]]
    """Image files of each case, by channel; cases in alphabetical order."""
    references: Mapping[str, Any]
    """Reference of each case: its segmentation's file, or the index of its class."""


@dataclass(frozen=True)
class RawCases:
    """A dataset in ``nnUNet_raw``.

    A ``SiteError`` of its methods names no case, file or path; other errors may.
    """

    dataset: str
    """Name of the dataset."""
    site: str
    """Name of the site, for messages."""

    @property
    def folder(self) -> Path:
        """Folder of the dataset."""
        return Path(nnUNet_raw.require()) / self.dataset

    def dataset_json(self) -> dict[str, Any]:
        """Return ``dataset.json``.

        Raises
        ------
        SettingsError
            If it cannot be read, or nnU-Net cannot use it.
        """
        content = read_json(self.folder / "dataset.json")
        check_declaration(content, f"site {self.site}: dataset.json")
        return dict(content)

    def check_declared(self, model: ModelDescription) -> None:
        """Make sure that the dataset has the channels, labels and files that a model is for.

        Raises
        ------
        SiteError
            If it does not: names the field.
        """
        content = self.dataset_json()
        ours, theirs = (
            {k: v for k, v in declared_of(side).items() if k != "classes" or model.classifies}
            for side in (content, model.dataset_json)
        )
        difference = find_difference(ours, theirs)
        if difference is not None:
            reason = f"; {difference.hint}" if difference.hint else ""
            raise SiteError(
                f"site {self.site}: {difference.field} of its dataset.json is "
                f"{clean(difference.ours, 80)}, of the model {clean(difference.theirs, 80)}{reason}"
            )
        reader = PlansManager(dict(model.plans)).image_reader_writer_class
        if content["file_ending"] not in reader.supported_file_endings:
            raise SiteError(
                f"site {self.site}: its images are {clean(content['file_ending'], 20)} files, the "
                f"model's reader {reader.__name__} reads {', '.join(reader.supported_file_endings)}"
            )

    def cases(self, subset: Subset, tester: Tester) -> Cases:
        """Return the cases of ``imagesTr`` or ``imagesTs`` with their references.

        Parameters
        ----------
        subset
            ``Tr`` or ``Ts``.
        tester
            Tester of the trainer, which knows what a reference is.

        Raises
        ------
        SettingsError
            If a case lacks a channel, or there are no cases.
        ValueError
            If a case has no reference.
        """
        declared = self.dataset_json()
        found = images_tr(self.folder) if subset == "Tr" else images_ts(self.folder)
        images = {case: found[case] for case in sorted(found)}
        channels = len(declared_of(declared)["channel_names"])
        wrong = [c for c, files in images.items() if len(files) != channels or channel_gap(files)]
        if wrong:
            raise SettingsError(f"{some_cases(wrong)} have not one image of each channel")
        return Cases(images, tester.references(self.folder, declared, subset, list(images)))

    def patients(self, images: Mapping[str, list[str]]) -> Patients:
        """Return the patients of cases, by the case table of the dataset.

        Raises
        ------
        SettingsError
            As of :func:`.patients_of_site`.
        """
        preprocessed = nnUNet_preprocessed.get()  # a case table may be there, too
        folder = Path(preprocessed) / self.dataset if preprocessed else self.folder
        dataset = Dataset(self.dataset, folder, {}, self.dataset_json())
        return patients_of_site(dataset, list(images), _WHY)
