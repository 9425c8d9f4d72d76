"""What a tuning found, as settings files for a training and for a comparison."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.choices import CompareChoices, TrainChoices
from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.federation.choice import Choices, choice_of, names_of, spell_key
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.settings import FederationSettings

SEEDS = 3
"""Seeds with which the comparison trains both settings, none of them the tuning's own."""
_OF_A_STUDY = {".lock", "study.json", "study.db", "comparison.toml", "report.html", "tuning.png"}
"""Files in the folder of a study that hold something else than the settings that were found."""
_NOT_IN_FILES = {"dataset", "configuration", "fold", "device", "settings", "reduced", "quiet"}


def training_toml(choices: TuneChoices, found: FederationSettings, why: str) -> str:
    """Return a settings file of ``nnUNetv2_train_federated``.

    Parameters
    ----------
    choices
        What was chosen for the tuning.
    found
        Settings that were found.
    why
        Lines on what they are, for the head of the file.
    """
    given = choices.part(TrainChoices).changed(**found.given()).given()
    return _head(why) + _lines(TrainChoices, given)


def comparison_toml(
    choices: TuneChoices, plan: TuningPlan, found: FederationSettings, why: str
) -> str:
    """Return a settings file of ``nnUNetv2_federated_compare``: the default against what was found.

    Parameters
    ----------
    choices
        What was chosen for the tuning.
    plan
        What was tuned.
    found
        Settings that were found.
    why
        Lines on what they are, for the head of the file.
    """
    settings = set(names_of(FederationSettings)) - {"seed"}
    given = choices.part(TrainChoices).given()
    common = {n: v for n, v in given.items() if n in names_of(CompareChoices) and n not in settings}
    common |= {"trainer": choices.trainer, "seed": choices.seed, "arms": ("federated",)}
    common["seeds"] = tuple(choices.seed + 1 + n for n in range(SEEDS))
    text = _head(why) + _lines(CompareChoices, common)
    for name, own in (("default", plan.base.settings), ("tuned", found)):
        values = {n: v for n, v in own.given().items() if n in settings}
        values["strategy"] = own.strategy
        text += f"\n[federated.{name}]\n" + _lines(FederationSettings, values)
    return text


def check_export(choices: TuneChoices) -> None:
    """Refuse a settings file that could not be written after all trials.

    Parameters
    ----------
    choices
        What was chosen; ``export`` is looked at, and ``study``, which need not exist.

    Raises
    ------
    SettingsError
        If ``--export`` is a folder or a file of the study, its folder does not exist, or may not be
        written.
    """
    if choices.export is None:
        return
    path, study = choices.export.absolute(), choices.study.absolute()
    if path.is_dir():
        raise SettingsError(f"--export {choices.export}: is a folder; give the name of a file.")
    if path.parent == study:
        if path.name in _OF_A_STUDY:
            raise SettingsError(
                f"--export {choices.export}: the study writes a {path.name} of its own there; give "
                "another name."
            )
        if not study.exists():
            return
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingsError(
            f"--export {choices.export}: {path.parent} cannot be written ({error.strerror}); give "
            "a file in a folder that exists and that you may write to."
        ) from error


def write_toml(path: Path, text: str) -> None:
    """Replace a settings file."""
    write_atomically(path, text)


def _head(why: str) -> str:
    return "".join(f"# {line}\n" for line in why.splitlines())


def _lines(record: type[Choices], values: Mapping[str, Any]) -> str:
    """Return assignments, without what a command line says beside the file."""
    written = (
        (spell_key(record, name), value)
        for name, value in values.items()
        if name not in _NOT_IN_FILES and value is not None and not choice_of(record, name).table
    )
    return "".join(f"{key} = {_as_toml(value)}\n" for key, value in written)


def _as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Path):
        return json.dumps(str(value.absolute()))
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Iterable):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    return repr(value)
