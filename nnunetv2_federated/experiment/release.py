"""Write a finished model as a folder or zip that a hospital can use, and check it first."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.experiment.release_card import gather_card, sites_of
from nnunetv2_federated.experiment.release_choices import ReleaseChoices
from nnunetv2_federated.experiment.release_names import check_release, check_texts, names_to_hide
from nnunetv2_federated.experiment.release_parts import Part, bundles, onnx_files
from nnunetv2_federated.experiment.release_signature import coordinators_key
from nnunetv2_federated.experiment.release_tests import read_results
from nnunetv2_federated.experiment.verify_release import SIGNATURE_FILE
from nnunetv2_federated.federation.checksums import CHECKSUMS_FILE, hash_file, write_checksums
from nnunetv2_federated.federation.disk import naming_the_disk
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import sync
from nnunetv2_federated.federation.identifying_names import IdentifyingNames
from nnunetv2_federated.federation.model_card import (
    CARD_FILE,
    MARKDOWN_FILE,
    ModelCard,
    write_card,
)
from nnunetv2_federated.federation.release_files import write_zip
from nnunetv2_federated.federation.strings_inside import strings_in_json
from nnunetv2_federated.nnunet.data.dataset import find_trainer
from nnunetv2_federated.nnunet.release.export import export_model
from nnunetv2_federated.nnunet.release.finished_model import FinishedModel, find_finished_model
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.report.model_card import card_as_markdown


@dataclass(frozen=True)
class Release:
    """A release that was written."""

    path: Path
    card: ModelCard
    files: int
    """Number of files with a checksum."""
    signed: bool


def release(choices: ReleaseChoices, say: Callable[[str], None]) -> Release:
    """Write a release; it is there with all its files or not at all.

    Parameters
    ----------
    choices
        What is released, and how.
    say
        Receives what happens, one line each.

    Raises
    ------
    SettingsError
        If the model is not complete, a part needs a package that is not installed, or a file would
        hold the name of a case.
    """
    output = _check(choices)
    model = _find(choices)
    parts = _parts(choices, model)
    sites = sites_of(model)
    tests = [test for folder in choices.results for test in read_results(folder, sites)]
    hidden = names_to_hide(model)
    _check_texts(choices, model, hidden)
    with (
        naming_the_disk(output.parent),
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch,
    ):
        target, copy = Path(scratch, "release"), Path(scratch, "copy")
        for folder in (target, copy):
            folder.mkdir()
        say(f"exporting {len(model.configurations) * len(model.folds)} trained folds")
        trainer = export_model(model, copy, target)
        top = target / model.dataset
        card = gather_card(model, trainer, tests)
        card = dataclasses.replace(
            card, purpose=choices.purpose, licence=choices.licence, contact=choices.contact
        )
        for part in parts:
            say(part.doing)
            card = part.add(model, copy, top, card)
        (top / CARD_FILE).write_text(write_card(card), encoding="utf-8")
        (top / MARKDOWN_FILE).write_text(card_as_markdown(card), encoding="utf-8")
        say("looking for names of cases")
        check_release(top, hidden)
        files = _write_checksums(top, choices.sign)
        _publish(target, model.dataset, output)
    return Release(output, card, files, choices.sign is not None)


def _check(choices: ReleaseChoices) -> Path:
    """Check what can be checked without the model; return where to write."""
    for flag, value in (
        ("DATASET", choices.dataset),
        ("-c", choices.configurations),
        ("-o", choices.output),
    ):
        if not value:
            raise SettingsError(f"{flag} is missing: see --help.")
    output = Path(os.path.abspath(choices.output or ""))  # noqa: PTH100  # keeps links
    if output.exists() or output.is_symlink():
        raise SettingsError(
            f"-o {choices.output}: exists already; give another name, or delete it first."
        )
    if not output.parent.is_dir():
        raise SettingsError(f"-o {choices.output}: there is no folder {output.parent}.")
    if choices.sign is not None:
        coordinators_key(choices.sign)  # says now whether it can be used
    return output


def _find(choices: ReleaseChoices) -> FinishedModel:
    return find_finished_model(
        choices.dataset or "",
        choices.configurations or (),
        choices.folds,
        trainer=choices.trainer,
        plans=choices.plans,
        checkpoints=choices.checkpoints,
    )


def _parts(choices: ReleaseChoices, model: FinishedModel) -> list[Part]:
    """Return the other forms that a model has, after checking that they can be written."""
    if "classes" not in model.dataset_json(model.configurations[0]):
        return [bundles()] if choices.monai else []
    trainer = find_trainer(model.trainer.removesuffix(SUFFIX))
    return [onnx_files(trainer)] if choices.onnx else []


def _check_texts(choices: ReleaseChoices, model: FinishedModel, hidden: IdentifyingNames) -> None:
    for flag in ("purpose", "licence", "contact"):
        found = hidden.stands_in(getattr(choices, flag) or "")
        if found is not None:
            raise SettingsError(f"--{flag}: holds {found}; leave it out.")
    for configuration in model.configurations:  # now, and not after minutes of exporting
        check_texts(
            f"{model.folder(configuration)}/plans.json",
            strings_in_json(model.plans(configuration)),
            hidden,
        )


def _write_checksums(top: Path, sign: Path | None) -> int:
    hashes = {}
    for path in sorted(path for path in top.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            hashes[path.relative_to(top).as_posix()] = hash_file(file)
    text = write_checksums(hashes)
    (top / CHECKSUMS_FILE).write_text(text, encoding="utf-8")
    if sign is not None:
        (top / SIGNATURE_FILE).write_bytes(coordinators_key(sign).sign(text.encode()))
    return len(hashes)


def _publish(target: Path, dataset: str, output: Path) -> None:
    """Put the finished release in its place, after it is on the disk."""
    finished = target
    if output.suffix == ".zip":
        finished = target.with_name("release.zip")
        write_zip(target / dataset, finished)
        sync(finished)
    else:
        for path in sorted(target.rglob("*"), reverse=True):
            sync(path)
    finished.rename(output)
    sync(output.parent)
