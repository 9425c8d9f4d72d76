"""A site before training: its raw dataset, told, fingerprinted and prepared with nnU-Net."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_federated.federation.agreement import (
    check_declared,
    check_names,
    hash_plans,
)
from nnunetv2_federated.federation.children import end_with_parent
from nnunetv2_federated.federation.declared import declared_of
from nnunetv2_federated.federation.disk import NO_ROOM, NOT_ALLOWED, naming_the_disk
from nnunetv2_federated.federation.errors import FederationError, SettingsError, SiteError
from nnunetv2_federated.federation.fingerprint import (
    CaseFingerprint,
    SiteFingerprint,
    summarise_site,
)
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PrepareReport,
    PrepareTask,
    SiteSurvey,
)
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.dataset import (
    check_environment,
    check_only_name,
    find_name,
    preprocessed_cases,
)
from nnunetv2_federated.nnunet.data.dataset_json import check_declaration
from nnunetv2_federated.nnunet.data.raw_case import (
    Work,
    analyse_case,
    choose_reader,
    declared_values,
    keeping_output,
    training_cases,
)
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.planning.checked_plans import check_dataset_json, check_plans
from nnunetv2_federated.nnunet.planning.memory_estimate import check_preprocessing
from nnunetv2_federated.nnunet.training.result_folder import one_preparation

logger = logging.getLogger(__name__)

DEFAULT_PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}
"""nnU-Net's, for preprocessing."""

_FINGERPRINT = "dataset_fingerprint.json"
_LONGEST_NOTE = 1000


@dataclass(frozen=True)
class RawSite:
    """A site's dataset under ``nnUNet_raw``.

    What a method raises may cross the wire: it names the site and a field, never a case, a file or
    a path. Those go to the site's log, and to :attr:`notes`.
    """

    dataset: str
    """Name of the dataset."""
    name: str
    """Of the site."""
    fingerprint_processes: int = 8
    preprocessing_processes: Mapping[str, int] = field(default_factory=dict)
    """By configuration; nnU-Net's default for any other."""
    allowed_modules: tuple[str, ...] = ()
    """Of the site's own networks, which plans may name."""
    notes: list[str] = field(default_factory=list, compare=False)
    """What the log has of cases and files, for a command whose user has them before him."""

    @classmethod
    def open(
        cls,
        name_or_id: str,
        *,
        site: str | None = None,
        fingerprint_processes: int = 8,
        preprocessing_processes: Mapping[str, int] | None = None,
        allowed_modules: Sequence[str] = (),
    ) -> RawSite:
        """Find a raw dataset; a site without a name of its own has the dataset's.

        Raises
        ------
        SettingsError
            If there is none, or nnU-Net's folders are not set.
        """
        check_environment(nnUNet_raw, nnUNet_preprocessed)
        raw = Path(nnUNet_raw.require())
        name = find_name(name_or_id) or name_or_id
        if not (raw / name / "dataset.json").is_file():
            raise SettingsError(
                f"dataset {name_or_id} has no dataset.json under nnUNet_raw ({raw}): give an id "
                "such as 501 or a name such as Dataset501_Name of a raw nnU-Net dataset."
            )
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
        """Folder of the dataset under ``nnUNet_preprocessed``; need not exist."""
        return Path(nnUNet_preprocessed.require()) / self.dataset

    def survey(self) -> SiteSurvey:
        """Tell what the dataset declares."""
        with self._speaking():
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
        """Read all images and masks, and summarise them."""
        with self._speaking():
            dataset_json = self._dataset_json()
            cases = self._cases(dataset_json)
            reader_writer = self._reader_writer(dataset_json, cases)
            channels, labels = (
                len(declared_of(dataset_json)["channel_names"]),
                declared_values(dataset_json),
            )
            work = [
                (
                    *(case["images"], case["label"], reader_writer, task.samples_per_case),
                    *(channels, labels),
                )
                for case in cases.values()
            ]
            found = list(
                tqdm(self._analyse(work), f"{self.name}: fingerprint", len(work), disable=None)
            )
            self._refuse_unusable(dict(zip(cases, found, strict=True)))
            if task.verify_dataset_integrity:  # last: what was found above is told with its case
                self._verify()
            good = [case for case in found if isinstance(case, CaseFingerprint)]
            return summarise_site(self.name, good, task.min_cases)

    def prepare(self, task: PrepareTask) -> PrepareReport:
        """Install the federation's plans and preprocess with them, after checking that they fit."""
        with self._speaking():
            self._check(task)
            if task.check_only:
                return PrepareReport(self.name, task.plans_hash, {})
            with self._alone():
                return self._prepare(task)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
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
        self._copy_splits()
        with quiet(), naming_the_disk(self.preprocessed):
            preprocess_dataset(
                int(self.dataset[len("Dataset") :][:3]),
                task.plans["plans_name"],
                task.configurations,
                [
                    self.preprocessing_processes.get(c, DEFAULT_PROCESSES.get(c, 4))
                    for c in task.configurations
                ],
                show_progress_bar=sys.stderr.isatty(),
            )
        return PrepareReport(self.name, hash_plans(load_json(str(plans_file))), self._count(task))

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
        """Return shape (channels, z, y, x) and spacing (z, y, x) of the case of the most bytes."""
        cases = self._cases(dataset_json)
        images = max(
            (case["images"] for case in cases.values()),
            key=lambda files: sum(Path(file).stat().st_size for file in files),
        )
        reader_writer = self._reader_writer(dataset_json, cases)
        image, properties = reader_writer().read_images(images)
        return image.shape, properties["spacing"]

    def _copy_splits(self) -> None:
        """Take the raw dataset's own folds, as nnU-Net's planner does."""
        source, target = (f / "splits_final.json" for f in (self._raw, self.preprocessed))
        if source.is_file() and not target.exists():
            save_json(load_json(str(source)), str(target), sort_keys=False)

    def _count(self, task: PrepareTask) -> dict[str, int]:
        plans = PlansManager(task.plans)
        folders = {
            name: self.preprocessed / str(plans.get_configuration(name).data_identifier)
            for name in task.configurations
        }
        try:
            return {name: len(preprocessed_cases(folder)) for name, folder in folders.items()}
        except SettingsError as error:  # its text names files
            self._note(f"{self.name}: {error}")
            raise SiteError(
                f"site {self.name}: there is something else beside its preprocessed cases; the "
                "site's log names it."
            ) from error

    def _dataset_json(self) -> dict[str, Any]:
        content: dict[str, Any] = load_json(str(self._raw / "dataset.json"))
        check_declaration(content, f"site {self.name}: dataset.json")
        return content

    def _cases(self, dataset_json: dict[str, Any]) -> dict[str, dict[str, Any]]:
        try:
            return training_cases(self._raw, dataset_json)
        except SettingsError as error:
            raise SiteError(f"site {self.name}: {error}") from error

    def _reader_writer(
        self, dataset_json: dict[str, Any], cases: dict[str, dict[str, Any]], *, note: bool = False
    ) -> type[BaseReaderWriter]:
        """nnU-Net's choice, which may look at an image."""
        check_dataset_json(dataset_json)
        ending = clean(dataset_json["file_ending"], 20)
        example = next(iter(cases.values()))["images"][0]
        found, reason = choose_reader(dataset_json, example)
        if found is None:
            self._note(f"{self.name}: {Path(example).name} cannot be read: {reason}")
            raise SiteError(
                f"site {self.name}: its first training image cannot be read by any reader that "
                f"nnU-Net has for {ending}; the site's log names it, mend or remove it."
            )
        if note and reason:
            self._note(
                f"{self.name}: {Path(example).name} cannot be read by nnU-Net's usual reader for "
                f"{ending} ({reason}), so that it takes {found.__name__} for all"
            )
        return found

    def _verify(self) -> None:
        """Run nnU-Net's own check, and keep what its worker processes print."""
        with keeping_output() as printed:
            try:
                verify_dataset_integrity(str(self._raw), self.fingerprint_processes)
            except (AssertionError, RuntimeError, FileNotFoundError) as error:
                reason, text = error, printed()
            else:
                return
        self._note(f"{self.name}: {clean(f'{text} {reason}', _LONGEST_NOTE)}")
        raise SiteError(
            f"site {self.name}: nnU-Net's --verify_dataset_integrity refuses the dataset "
            f"({type(reason).__name__}); the site's log says why."
        ) from reason

    def _note(self, text: str) -> None:
        logger.error("%s", text)
        self.notes.append(text)

    def _analyse(self, work: Sequence[Work]) -> Iterator[CaseFingerprint | str]:
        if self.fingerprint_processes == 1:
            yield from map(analyse_case, work)
            return
        context = multiprocessing.get_context("spawn")  # as nnU-Net
        with ProcessPoolExecutor(
            self.fingerprint_processes, context, initializer=end_with_parent
        ) as pool:
            yield from pool.map(analyse_case, work)

    def _refuse_unusable(self, found: dict[str, CaseFingerprint | str]) -> None:
        problems = {case: what for case, what in found.items() if isinstance(what, str)}
        for case, what in problems.items():
            self._note(f"{self.name}, case {case}: {what}")
        if problems:
            kinds = ", ".join(
                sorted({what.split(":", maxsplit=1)[0] for what in problems.values()})
            )
            raise SiteError(
                f"site {self.name}: {len(problems)} of {len(found)} training cases cannot be used "
                f"({kinds}); the site's log names them, mend or remove them."
            )

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Let nothing out of an unexpected error but its type; the disk's are left as they are."""
        try:
            yield
        except FederationError:
            raise
        except Exception as error:
            logger.exception("%s failed", self.name)
            self.notes.append(f"{self.name}: {type(error).__name__}: {clean(error)}")
            if isinstance(error, OSError) and error.errno in NO_ROOM | NOT_ALLOWED:
                raise  # whoever answers says what the disk refused, and not where
            raise SiteError(
                f"site {self.name}: {type(error).__name__}; the site's log says more."
            ) from error


def other_plans(folder: Path, task: PrepareTask) -> str | None:
    """Say so if a preprocessed dataset has other plans of that name, which are to be kept."""
    name = task.plans["plans_name"]
    plans_file = folder / f"{name}.json"
    if task.replace_plans or not plans_file.is_file():
        return None
    present = hash_plans(load_json(str(plans_file)))
    if present == task.plans_hash:
        return None
    return (
        f"has other plans named {name} already (hash {present[:12]}, the federation's "
        f"{task.plans_hash[:12]}); nothing was changed. Choose another name with "
        "-overwrite_plans_name, or --replace-plans."
    )


def install_plans(folder: Path, task: PrepareTask, dataset_json: Mapping[str, Any]) -> Path:
    """Write the federation's plans and fingerprint into a preprocessed dataset.

    What stock planning left there before is kept: it describes the site's own cases.

    Returns
    -------
    Path
        The file of the plans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_json(dict(dataset_json), str(folder / "dataset.json"), sort_keys=False)
    path = folder / _FINGERPRINT
    kept = path.with_name("dataset_fingerprint_of_site.json")
    if path.is_file() and not kept.exists() and load_json(str(path)) != task.fingerprint:
        path.replace(kept)
    save_json(task.fingerprint, str(path))
    plans_file = folder / f"{task.plans['plans_name']}.json"
    save_json({"dataset_name": folder.name, **task.plans}, str(plans_file), sort_keys=False)
    return plans_file


def _unit(reader_writer: type) -> str:
    return "pixel" if issubclass(reader_writer, NaturalImage2DIO) else "mm"
