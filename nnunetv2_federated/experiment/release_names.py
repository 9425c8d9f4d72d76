"""What must not be found in a release: names of cases and patients, and folders of this machine."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunetv2_federated.experiment.release_results import SUMMARY_FILE, case_of, read_summary
from nnunetv2_federated.federation.case_table import PATIENT_COLUMN, read_case_table
from nnunetv2_federated.federation.declared import declared_of
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.identifying_names import IdentifyingNames
from nnunetv2_federated.federation.run import RUN_FILE, read_run
from nnunetv2_federated.federation.strings_inside import strings_in_json, strings_inside
from nnunetv2_federated.nnunet.data.dataset import read_json
from nnunetv2_federated.nnunet.data.folds import CASE_TABLE, SPLITS_FILE
from nnunetv2_federated.nnunet.data.raw_files import case_files
from nnunetv2_federated.nnunet.release.finished_model import FinishedModel

_FOLDERS_OF_IMAGES = ("imagesTr", "imagesTs")
_LABELS = ("labelsTr.json", "labelsTs.json")


def names_to_hide(model: FinishedModel) -> IdentifyingNames:
    """Gather the names of the cases and patients that a model was trained and tested on.

    They are those of its runs and summaries, and of its dataset where that is on this machine.

    Parameters
    ----------
    model
        Model that is released.

    Raises
    ------
    SettingsError
        If one of the files that have them cannot be read.
    """
    names: set[str] = set()
    datasets = {model.dataset}
    for _, _, folder in model.fold_folders():
        for summary in folder.rglob(SUMMARY_FILE):
            rows = read_summary(summary).get("metric_per_case", [])
            names |= {case_of(row) for row in rows}
        if (folder / "federation" / RUN_FILE).is_file():
            for site in read_run(folder / "federation").sites:
                names |= {*site.training_cases, *site.validation_cases}
                datasets.add(site.dataset)
    for folder in _folders(datasets):
        names |= set(_names_in(folder))
    return IdentifyingNames(names, _paths(), _harmless(model))


def check_release(folder: Path, hidden: IdentifyingNames) -> None:
    """Look through all files below a folder.

    Parameters
    ----------
    folder
        Release before it is handed out.
    hidden
        What must not be in it.

    Raises
    ------
    SettingsError
        If some of it is; names the file, and not what it holds.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        check_texts(name, itertools.chain([name], strings_inside(path)), hidden)


def check_texts(name: str, texts: Iterable[str], hidden: IdentifyingNames) -> None:
    """Look through the texts of one file.

    Parameters
    ----------
    name
        Name of the file, for the message.
    texts
        Its texts.
    hidden
        What must not be in them.

    Raises
    ------
    SettingsError
        If some of it is.
    """
    for text in texts:
        found = hidden.stands_in(text)
        if found is not None:
            raise SettingsError(
                f"{name} holds {found}: nothing was released; remove it from that file, or from "
                "what you gave for the card."
            )


def _folders(datasets: set[str]) -> Iterator[Path]:
    for place in (nnUNet_raw, nnUNet_preprocessed):
        if place.is_set():
            for dataset in sorted(datasets):
                folder = Path(place.require()) / dataset
                if folder.is_dir():
                    yield folder


def _names_in(folder: Path) -> Iterator[str]:
    """Yield the cases and patients that a raw or preprocessed dataset names."""
    for name in (SPLITS_FILE, *_LABELS):
        if (folder / name).is_file():
            yield from strings_in_json(read_json(folder / name))
    for reference in (folder / "gt_segmentations").glob("*"):
        yield case_of({"reference_file": reference.name})
    if (folder / CASE_TABLE).is_file():
        for case, columns in read_case_table(folder / CASE_TABLE).items():
            yield case
            yield columns.get(PATIENT_COLUMN, "")
    declaration = folder / "dataset.json"
    declared = read_json(declaration) if declaration.is_file() else {}
    yield from map(str, declared.get("dataset", ()))  # nnU-Net's list of cases elsewhere
    for name in _FOLDERS_OF_IMAGES if "file_ending" in declared else ():
        with contextlib.suppress(FileNotFoundError):
            yield from case_files(folder / name, declared["file_ending"])


def _paths() -> list[str]:
    """Return the folders of this machine that a file could name."""
    found = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix)]
    found += [
        Path(place.require())
        for place in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results)
        if place.is_set()
    ]
    resolved = [path.resolve() for path in found]
    return [str(path) for path in {*found, *resolved} if len(path.parts) > 1]


def _harmless(model: FinishedModel) -> set[str]:
    """Return the words that plans and labels have themselves."""
    words: set[str] = {model.dataset, model.trainer, model.plans_name}
    for configuration in model.configurations:
        declared: dict[str, Any] = declared_of(model.dataset_json(configuration))
        for field in ("labels", "classes"):
            words |= set(map(str, declared.get(field, {})))
        words |= set(map(str, declared.get("channel_names", {}).values()))
        words.add(configuration)
    return words
