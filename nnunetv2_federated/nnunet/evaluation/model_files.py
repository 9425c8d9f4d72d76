"""The files of a trained model: nnU-Net's result folder, one fold of it, or an exported zip."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import is_plain_name
from nnunetv2_federated.federation.text import clean, few
from nnunetv2_federated.nnunet.evaluation.chosen_folder import POSTPROCESSING, chosen_folder

_PLANS, _DATASET = "plans.json", "dataset.json"
_FOLD = re.compile(r"fold_(\d{1,3}|all)")
_MEGABYTE = 2**20
_MOST_BYTES = {".json": 64 * _MEGABYTE, ".pkl": _MEGABYTE, ".pth": 16 * 1024 * _MEGABYTE}
"""Most bytes of a file that is taken out of a zip, by its suffix."""
_MOST_FILES = 1_000_000
_ALLOWED = (
    "give nnU-Net's result folder (Trainer__Plans__configuration), a fold_X of it, or a zip of "
    "nnUNetv2_export_model_to_zip"
)


@dataclass(frozen=True)
class WhichModel:
    """Which part of a trained model is evaluated."""

    folds: tuple[int | str, ...] | None = None
    """Folds whose outputs are averaged; ``None`` for all that there are."""
    checkpoint: str = "checkpoint_final.pth"
    configuration: str | None = None
    """Configuration, where a zip has several."""


@dataclass(frozen=True)
class ModelFiles:
    """Files of a trained model, on this machine."""

    folder: Path
    """nnU-Net's result folder, or what of it was taken out of a zip."""
    folds: tuple[int | str, ...]
    checkpoints: tuple[Path, ...]
    """One for each fold."""

    @property
    def postprocessing(self) -> Path:
        """What ``nnUNetv2_find_best_configuration`` found for these folds; need not exist."""
        return chosen_folder([self.folder], self.folds) / POSTPROCESSING


@contextlib.contextmanager
def open_model(path: Path, which: WhichModel) -> Iterator[ModelFiles]:
    """Find the files of a trained model; those of a zip are there for a while.

    Raises
    ------
    SettingsError
        If it is none of nnU-Net's, a fold or checkpoint is missing, or a zip is damaged or leads
        out of itself.
    """
    if not is_plain_name(which.checkpoint):
        raise SettingsError(f"-chk {clean(which.checkpoint, 80)}: give the name of a file.")
    if path.is_dir():
        yield _in_folder(path, which)
    elif path.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            yield _in_zip(path, which, Path(scratch))
    else:
        raise SettingsError(f"{path} does not exist: {_ALLOWED}.")


def _in_folder(path: Path, which: WhichModel) -> ModelFiles:
    fold = _FOLD.fullmatch(path.name)
    if fold and not (path / _PLANS).is_file():
        if which.folds is not None:
            raise SettingsError(f"{path} is one fold: leave -f out, or give the folder above.")
        return _collect(path.parent, which, (_number(fold[1]),), path)
    known = [_number(m[1]) for p in sorted(path.iterdir()) if (m := _FOLD.fullmatch(p.name))]
    present = [f for f in known if (path / f"fold_{f}" / which.checkpoint).is_file()]
    return _collect(path, which, which.folds or _usual(present), path)


def _collect(
    folder: Path, which: WhichModel, folds: Sequence[int | str], given: Path
) -> ModelFiles:
    for name in (_PLANS, _DATASET):
        if not (folder / name).is_file():
            raise SettingsError(f"{given} is no trained model, {name} is missing: {_ALLOWED}.")
    if not folds:
        raise SettingsError(
            f"{given} has no fold with {which.checkpoint}: see -chk, or {_ALLOWED}."
        )
    checkpoints = tuple(folder / f"fold_{fold}" / which.checkpoint for fold in folds)
    missing = [str(path.relative_to(folder)) for path in checkpoints if not path.is_file()]
    if missing:
        raise SettingsError(f"{given} has no {few(missing)}: see -f and -chk.")
    return ModelFiles(folder, tuple(folds), checkpoints)


def _usual(present: Sequence[int | str]) -> tuple[int | str, ...]:
    """Return the folds that nnU-Net would predict with: all but ``all``, unless it is alone."""
    numbered = tuple(sorted(fold for fold in present if isinstance(fold, int)))
    return numbered or tuple(present)


def _number(fold: str) -> int | str:
    return fold if fold == "all" else int(fold)


def _in_zip(path: Path, which: WhichModel, scratch: Path) -> ModelFiles:
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            root = _root(members, which, path)
            for name, member in members.items():
                inside = PurePosixPath(name)
                if inside.is_relative_to(root) and _is_needed(inside.relative_to(root), which):
                    _extract(archive, member, scratch / inside.relative_to(root), path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise SettingsError(
            f"{path} is no zip that can be read ({clean(error)}): {_ALLOWED}."
        ) from error
    return _in_folder(scratch, which)


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a zip by name; refuse names that lead elsewhere."""
    members: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > _MOST_FILES:
        raise SettingsError(f"{path} has {len(archive.infolist())} files: too many for a model.")
    for member in archive.infolist():
        name = member.filename
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts or ":" in name:
            raise SettingsError(f"{path} has the name {clean(name, 80)}, which leads out of it.")
        if name in members:
            raise SettingsError(f"{path} has {clean(name, 80)} twice: export the model again.")
        if not member.is_dir():
            members[name] = member
    return members


def _root(members: dict[str, zipfile.ZipInfo], which: WhichModel, path: Path) -> PurePosixPath:
    """Return the folder in a zip that holds the model."""
    roots = [PurePosixPath(n).parent for n in members if PurePosixPath(n).name == _PLANS]
    wanted = which.configuration
    chosen = [root for root in roots if wanted in (None, root.name.rpartition("__")[2])]
    if len(chosen) == 1:
        return chosen[0]
    names = few(clean(root.name, 80) for root in roots)
    if not roots:
        raise SettingsError(f"{path} is no exported model, {_PLANS} is missing: {_ALLOWED}.")
    raise SettingsError(f"{path} has {names}: choose one with -c CONFIGURATION.")


def _is_needed(name: PurePosixPath, which: WhichModel) -> bool:
    """Whether a file of a result folder is read."""
    parts = name.parts
    if len(parts) == 1:
        return parts[0] in (_PLANS, _DATASET)
    if parts[0].startswith("crossval_results_folds_"):
        return parts[1:] == (POSTPROCESSING,) and is_plain_name(parts[0])
    inside = (which.checkpoint,), ("validation", "summary.json")
    return _FOLD.fullmatch(parts[0]) is not None and parts[1:] in inside


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, path: Path) -> None:
    most = _MOST_BYTES.get(target.suffix, 0)
    if member.file_size > most:
        raise SettingsError(
            f"{path}: {clean(member.filename, 80)} has {member.file_size} bytes, at most {most} "
            "are read."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)  # zipfile reads no more than file_size
