"""A site before training: its raw dataset is surveyed, fingerprinted and preprocessed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunetv2_federated.federation.agreement import (
    check_declared,
    check_names,
    hash_plans,
)
from nnunetv2_federated.federation.declared import declared_of
from nnunetv2_federated.federation.disk import NO_ROOM, NOT_ALLOWED
from nnunetv2_federated.federation.errors import FederationError, SettingsError, SiteError
from nnunetv2_federated.federation.fingerprint import (
    CaseFingerprint,
    SiteFingerprint,
    summarise_cases,
)
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PrepareReport,
    PrepareTask,
    SiteSurvey,
)
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.case_progress import counted
from nnunetv2_federated.nnunet.data.dataset import (
    check_environment,
    check_only_name,
    find_raw,
)
from nnunetv2_federated.nnunet.data.dataset_json import check_declaration
from nnunetv2_federated.nnunet.data.raw_case import (
    analyse_cases,
    choose_reader,
    largest_images,
    training_cases,
    verify_integrity,
    work_of,
)
from nnunetv2_federated.nnunet.data.raw_files import CaseFiles
from nnunetv2_federated.nnunet.planning.checked_plans import check_dataset_json, check_plans
from nnunetv2_federated.nnunet.planning.installed_plans import install_plans, other_plans
from nnunetv2_federated.nnunet.planning.memory_estimate import check_preprocessing
from nnunetv2_federated.nnunet.planning.preprocessing import (
    copy_splits,
    count_preprocessed,
    preprocess,
)
from nnunetv2_federated.nnunet.training.result_folder import one_preparation
from nnunetv2_federated.nnunet.workers import usable_cores

logger = logging.getLogger(__name__)

DEFAULT_PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}
"""nnU-Net's processes that preprocess, by configuration; with fewer cores as many as these."""
_FINGERPRINT_PROCESSES = min(8, usable_cores())
"""nnU-Net's processes for fingerprints, or as many as there are cores."""


@dataclass(frozen=True)
class RawSite:
    """A site's dataset in ``nnUNet_raw``.

    The errors of its methods may leave the site: they name the site and a field, never a case, a
    file or a path. Those go to the site's log, and to :attr:`notes`.
    """

    dataset: str
    """Name of the dataset."""
    name: str
    """Name of the site."""
    fingerprint_processes: int = _FINGERPRINT_PROCESSES
    """Number of processes that read cases for the fingerprint."""
    preprocessing_processes: Mapping[str, int] = field(default_factory=dict)
    """Number of processes that preprocess, by configuration; nnU-Net's default for any other."""
    allowed_modules: tuple[str, ...] = ()
    """Modules of the site's own networks, which plans may name."""
    notes: list[str] = field(default_factory=list, compare=False)
    """What the log says of cases and files, for a command whose user may see them."""

    @classmethod
    def open(
        cls,
        name_or_id: str,
        *,
        site: str | None = None,
        fingerprint_processes: int = _FINGERPRINT_PROCESSES,
        preprocessing_processes: Mapping[str, int] | None = None,
        allowed_modules: Sequence[str] = (),
    ) -> RawSite:
        """Find a raw dataset.

        Parameters
        ----------
        name_or_id
            ``Dataset501_Name`` or ``501``.
        site
            Name of the site; ``None`` for the name of the dataset.
        fingerprint_processes, preprocessing_processes, allowed_modules
            Attributes of the same names.

        Raises
        ------
        SettingsError
            If there is no such dataset, or nnU-Net's folders are not set.
        """
        check_environment(nnUNet_preprocessed)
        name = find_raw(name_or_id)
        check_only_name(name)
        return cls(
            name,
            site or name,
            fingerprint_processes,
            preprocessing_processes or {},
            tuple(allowed_modules),
        )

    @property
    def _raw(self) -> Path:
        return Path(nnUNet_raw.require()) / self.dataset

    @property
    def preprocessed(self) -> Path:
        """Folder of the dataset in ``nnUNet_preprocessed``, which need not exist."""
        return Path(nnUNet_preprocessed.require()) / self.dataset

    def survey(self) -> SiteSurvey:
        """Return what the dataset declares."""
        with self._without_details():
            dataset_json = self._dataset_json()
            cases = self._cases(dataset_json)
            if not cases:
                raise SiteError(f"site {self.name}: no training case in imagesTr")
            reader_writer = self._reader_writer(dataset_json, cases, note=True)
            declared = declared_of(dataset_json)
            return SiteSurvey(
                site=self.name,
                cases=len(cases),
                channel_names=declared["channel_names"],
                labels=declared["labels"],
                regions_class_order=declared.get("regions_class_order"),
                file_ending=dataset_json["file_ending"],
                reader_writer=reader_writer.__name__,
                spacing_unit=dataset_json.get("spacing_unit") or _unit(reader_writer),
                nnunetv2=version("nnunetv2"),
            )

    def fingerprint(self, task: FingerprintTask) -> SiteFingerprint:
        """Read all images and masks, and return their summary."""
        with self._without_details():
            dataset_json = self._dataset_json()
            cases = self._cases(dataset_json)
            reader_writer = self._reader_writer(dataset_json, cases)
            work = work_of(cases, dataset_json, reader_writer, task.samples_per_case)
            results_of = analyse_cases(work, self.fingerprint_processes)
            title = f"{self.name}: fingerprint"
            results = list(counted(results_of, title, len(work)))
            self._refuse_unusable(dict(zip(cases, results, strict=True)))
            if task.verify_dataset_integrity:  # last: the checks above name the case
                self._verify()
            fingerprints = [case for case in results if isinstance(case, CaseFingerprint)]
            return summarise_cases(self.name, fingerprints, task.min_cases)

    def prepare(self, task: PrepareTask) -> PrepareReport:
        """Install the federation's plans and preprocess with them, after checking that they fit."""
        with self._without_details():
            self._check(task)
            if task.check_only:
                return PrepareReport(self.name, task.plans_hash, {})
            with self._alone():
                return self._prepare(task)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other commands from preparing the dataset meanwhile."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(one_preparation(self.preprocessed))
            except SettingsError as error:  # its text names a path: the log has it
                logger.exception("%s cannot be prepared", self.name)
                raise SiteError(
                    f"site {self.name}: another command prepares its dataset, or nothing can be "
                    "written there; the site's log says more."
                ) from error
            yield

    def _prepare(self, task: PrepareTask) -> PrepareReport:
        plans_file = install_plans(self.preprocessed, task, self._dataset_json())
        copy_splits(self._raw, self.preprocessed)
        processes = {
            name: self.preprocessing_processes.get(
                name, min(DEFAULT_PROCESSES.get(name, 4), usable_cores())
            )
            for name in task.configurations
        }
        preprocess(self.preprocessed, task, processes)
        try:
            cases = count_preprocessed(self.preprocessed, task)
        except SettingsError as error:  # its text names files: the log has it
            self._note(f"{self.name}: {error}")
            raise SiteError(
                f"site {self.name}: there is something else beside its preprocessed cases; the "
                "site's log names it."
            ) from error
        return PrepareReport(self.name, hash_plans(load_json(str(plans_file))), cases)

    def _check(self, task: PrepareTask) -> None:
        if hash_plans(task.plans) != task.plans_hash:
            raise SiteError(f"site {self.name}: the plans do not have the hash sent with them")
        check_names(task.plans, self.name)
        dataset_json = self._dataset_json()
        check_plans(task.plans, dataset_json, self.name, self.allowed_modules)
        check_declared(self.survey(), task.declared, "the federation")
        shape, spacing = self._largest_case(dataset_json)
        check_preprocessing(task.plans, task.configurations, shape, spacing, site=self.name)
        if problem := other_plans(self.preprocessed, task):
            raise SiteError(f"site {self.name}: {problem}")

    def _largest_case(self, dataset_json: dict[str, Any]) -> tuple[Sequence[int], Sequence[float]]:
        """Return shape (channels, z, y, x) and spacing (z, y, x) of the case with most bytes."""
        cases = self._cases(dataset_json)
        reader_writer = self._reader_writer(dataset_json, cases)
        image, properties = reader_writer().read_images(largest_images(cases))
        return image.shape, properties["spacing"]

    def _dataset_json(self) -> dict[str, Any]:
        content: dict[str, Any] = load_json(str(self._raw / "dataset.json"))
        check_declaration(content, f"site {self.name}: dataset.json")
        return content

    def _cases(self, dataset_json: dict[str, Any]) -> dict[str, CaseFiles]:
        try:
            return training_cases(self._raw, dataset_json)
        except SettingsError as error:
            raise SiteError(f"site {self.name}: {error}") from error

    def _reader_writer(
        self, dataset_json: dict[str, Any], cases: dict[str, CaseFiles], *, note: bool = False
    ) -> type[BaseReaderWriter]:
        """Return the reader/writer that nnU-Net chooses, which may try it on an image."""
        check_dataset_json(dataset_json)
        ending = clean(dataset_json["file_ending"], 20)
        example = next(iter(cases.values())).images[0]
        reader_writer, reason = choose_reader(dataset_json, example)
        if reader_writer is None:
            self._note(f"{self.name}: {Path(example).name} cannot be read: {reason}")
            raise SiteError(
                f"site {self.name}: its first training image cannot be read by any reader that "
                f"nnU-Net has for {ending}; the site's log names it, fix or remove it."
            )
        if note and reason:
            self._note(
                f"{self.name}: {Path(example).name} cannot be read by nnU-Net's usual reader for "
                f"{ending} ({reason}), so that it takes {reader_writer.__name__} for all"
            )
        return reader_writer

    def _verify(self) -> None:
        """Run nnU-Net's own check; its words go to the log."""
        reason = verify_integrity(self._raw, self.fingerprint_processes)
        if reason is not None:
            kind, text = reason
            self._note(f"{self.name}: {text}")
            raise SiteError(
                f"site {self.name}: nnU-Net's --verify_dataset_integrity refuses the dataset "
                f"({kind}); the site's log says why."
            )

    def _note(self, text: str) -> None:
        logger.error("%s", text)
        self.notes.append(text)

    def _refuse_unusable(self, results: dict[str, CaseFingerprint | str]) -> None:
        problems = {case: what for case, what in results.items() if isinstance(what, str)}
        for case, what in problems.items():
            self._note(f"{self.name}, case {case}: {what}")
        if problems:
            kinds = sorted({what.partition(":")[0] for what in problems.values()})
            raise SiteError(
                f"site {self.name}: {len(problems)} of {len(results)} training cases cannot be "
                f"used ({', '.join(kinds)}); the site's log names them, fix or remove them."
            )

    @contextlib.contextmanager
    def _without_details(self) -> Iterator[None]:
        """Re-raise unexpected errors as ``SiteError`` that names only their type.

        Their text could name a patient. Errors of a full or write-protected disk are raised as they
        are: the code that answers for the site leaves the path out.
        """
        try:
            yield
        except FederationError:
            raise
        except Exception as error:
            logger.exception("%s failed", self.name)
            self.notes.append(f"{self.name}: {type(error).__name__}: {clean(error)}")
            if isinstance(error, OSError) and error.errno in NO_ROOM | NOT_ALLOWED:
                raise
            raise SiteError(
                f"site {self.name}: {type(error).__name__}; the site's log says more."
            ) from error


def _unit(reader_writer: type) -> str:
    """Return the unit of the spacing of the images that a reader/writer reads."""
    return "pixel" if issubclass(reader_writer, NaturalImage2DIO) else "mm"
