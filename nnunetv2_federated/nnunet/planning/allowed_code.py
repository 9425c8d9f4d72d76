"""The code that plans, ``dataset.json``, proposals and settings may name, from a register.

nnU-Net turns names into code: it follows the attributes of any module (``pydoc.locate``), and takes
whatever a module of a folder has under a name (``recursive_find_python_class``), also what that
module has only imported. So a harmless name may stand for any code. Here a name is accepted only if
the object it stands for is *defined* in an allowed module, is of the expected kind, and is the one
that nnU-Net's own lookup will return.
"""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.planning.allowed_arguments import REGISTER
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds, federated_trainer

_ARCHITECTURES = "dynamic_network_architectures.architectures"
_MOVED = re.compile(rf"{re.escape(_ARCHITECTURES)}\.[a-z0-9_]+\.([A-Za-z0-9_]+)")
_ROOTS = ("torch.nn", "dynamic_network_architectures", "nnunetv2_cls.network")
_TRAINERS = (
    "nnunetv2.training.nnUNetTrainer",
    "nnunetv2_federated.nnunet.training.trainer",
    "nnunetv2_cls",
)
_MAKES_TRAINERS = (
    "nnunetv2_federated.nnunet.training.optimizer",
    "nnunetv2_federated.nnunet.training.trainer",
    "nnunetv2_federated.cli.stock_command",
)
"""Modules in which federated siblings of trainers are defined."""
_LONGEST = 200


@dataclass(frozen=True)
class _Found:
    """A kind of code that nnU-Net finds by a bare name in one of its packages."""

    package: str
    base: type | None
    """Base class of the kind; ``None`` for functions, which the register lists one by one."""


_BY_NAME = {
    "reader/writer": _Found("nnunetv2.imageio", BaseReaderWriter),
    "preprocessor": _Found("nnunetv2.preprocessing", DefaultPreprocessor),
    "normalization scheme": _Found("nnunetv2.preprocessing.normalization", ImageNormalization),
    "label manager": _Found("nnunetv2.utilities.label_handling", LabelManager),
    "planner": _Found("nnunetv2.experiment_planning", ExperimentPlanner),
    "resampling function": _Found("nnunetv2.preprocessing.resampling", None),
}
KINDS = tuple(dict.fromkeys([*REGISTER, *_BY_NAME]))
"""Kinds of code that a name may have to stand for."""
DOTTED_KINDS = tuple(kind for kind in REGISTER if kind not in _BY_NAME)
"""Networks and their parts, which nnU-Net finds by a dotted name."""


def resolve(kind: str, name: object, allowed_modules: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Return the class or function that a name stands for.

    Only modules of the register, of nnU-Net and the allowed ones are imported.

    Parameters
    ----------
    kind
        One of :data:`KINDS`.
    name
        Name as plans give it: dotted for networks and their parts, bare for code of nnU-Net.
    allowed_modules
        Modules of the hospital's own networks and their parts.

    Raises
    ------
    SettingsError
        If the name stands for nothing, for code defined elsewhere, or for code of another kind.
    """
    code = None
    if _is_spelled_well(name):
        look_up = _search if kind in _BY_NAME else _locate
        code = look_up(kind, str(name), allowed_modules)
    if code is None:
        raise SettingsError(
            f"{clean(repr(name), 80)} is not an allowed {kind}; allowed is {_allowed(kind)}"
        )
    return code


def definition(code: Any) -> str:  # noqa: ANN401  # a class or a function
    """Return where a class or function is defined, as a dotted name."""
    return f"{code.__module__}.{code.__qualname__}"


def check_trainer(name: object, allowed_modules: Sequence[str] = ()) -> type[FederatedRounds]:
    """Return the federated trainer of a name.

    Parameters
    ----------
    name
        ``nnUNetTrainer``, another trainer that nnU-Net finds, or either with ``Federated``.
    allowed_modules
        Modules of the hospital's own trainers; a file ``Mine.py`` in a folder of
        ``nnUNet_extTrainer`` is the module ``Mine``.

    Raises
    ------
    SettingsError
        If there is no such trainer, or it is defined in a module that is not allowed.
    """
    if not _is_spelled_well(name) or "." in str(name):
        raise SettingsError(f"trainer {clean(name, 80)} is unknown: give the name of a class.")
    trainer = federated_trainer(str(name))
    given = next(c for c in trainer.__mro__ if c.__module__ not in _MAKES_TRAINERS)
    modules = (*_TRAINERS, *allowed_modules)
    # nnU-Net removes a module of nnUNet_extTrainer from sys.modules once it has the class
    forgotten = given.__module__ not in sys.modules
    defined = _is_within(given.__module__, modules) if forgotten else _is_defined(given, modules)
    if not defined or not issubclass(given, nnUNetTrainer):
        raise SettingsError(
            f"trainer {name} is defined in {clean(given.__module__, 80)}; allowed is a trainer of "
            f"{', '.join(_TRAINERS)}, and of what allowed_modules in site.toml names."
        )
    return trainer


def _is_spelled_well(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.isascii()
        and len(name) <= _LONGEST
        and all(part.isidentifier() and not part.startswith("_") for part in name.split("."))
    )


def _allowed(kind: str) -> str:
    if kind in REGISTER:
        return ", ".join(path.rpartition(".")[2] for path in REGISTER[kind])
    return f"what {_BY_NAME[kind].package} defines"


def _is_within(module: object, modules: Sequence[str]) -> bool:
    return isinstance(module, str) and any(
        module == m or module.startswith(f"{m}.") for m in modules
    )


def _is_defined(code: object, modules: Sequence[str]) -> bool:
    """Whether a class or function is defined in one of the modules, under its own name."""
    if not isinstance(code, (type, FunctionType)) or not _is_within(code.__module__, modules):
        return False
    there = vars(sys.modules[code.__module__]) if code.__module__ in sys.modules else {}
    return there.get(code.__qualname__) is code


def _search(kind: str, name: str, allowed_modules: Sequence[str]) -> Any:  # noqa: ANN401
    """Look a bare name up as nnU-Net does, in one of its packages."""
    del allowed_modules  # nnU-Net searches only its own packages
    where = _BY_NAME[kind]
    if "." in name:
        return None
    package = importlib.import_module(where.package)
    code = recursive_find_python_class(str(Path(package.__path__[0])), name, where.package)
    if not _is_defined(code, [where.package]):
        return None
    if where.base is None:
        return code if definition(code) in REGISTER[kind] else None
    fits = isinstance(code, type) and issubclass(code, where.base)
    return code if fits and not inspect.isabstract(code) else None


def _locate(kind: str, name: str, allowed_modules: Sequence[str]) -> Any:  # noqa: ANN401
    """Return what a dotted name stands for, if nnU-Net finds the same."""
    code = _walk(name, allowed_modules)
    moved = _MOVED.fullmatch(name)
    if code is None and kind == "network" and moved:
        code = _of_register(kind, moved[1])
    registered = _is_defined(code, _ROOTS) and definition(code) in REGISTER[kind]
    of_hospital = _is_defined(code, allowed_modules) and _is_network_code(code, kind)
    if not registered and not of_hospital:
        return None
    return code if _as_nnunet_finds(kind, name) is code else None


def _walk(name: str, allowed_modules: Sequence[str]) -> object:
    """Follow a dotted name from module to module, without leaving the allowed packages.

    ``pydoc.locate`` would follow any attribute, also to a module that another one has imported.
    """
    roots = (*_ROOTS, *allowed_modules)
    root = next((root for root in roots if name.startswith(f"{root}.")), None)
    if root is None:
        return None
    _import_register()
    code: object = _import(root)
    for part in name[len(root) + 1 :].split("."):
        if not isinstance(code, ModuleType) or not _is_within(code.__name__, roots):
            return None
        if part not in vars(code) and root in allowed_modules and hasattr(code, "__path__"):
            _import(f"{code.__name__}.{part}")
        code = vars(code).get(part)
    return code


def _import(module: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@lru_cache(maxsize=1)
def _import_register() -> None:
    for paths in REGISTER.values():
        for path in paths:
            importlib.import_module(path.rpartition(".")[0])


def _of_register(kind: str, name: str) -> object:
    """Return the registered code with this last name, as nnU-Net does for code that has moved."""
    for path in REGISTER[kind]:
        module, _, last = path.rpartition(".")
        if last == name and module.startswith(_ARCHITECTURES):
            return vars(importlib.import_module(module)).get(name)
    return None


def _is_network_code(code: object, kind: str) -> bool:
    if isinstance(code, type):
        return issubclass(code, nn.Module)
    return kind == "network"


def _as_nnunet_finds(kind: str, name: str) -> object:
    """Return what nnU-Net's ``get_network_from_plans`` makes of a name."""
    code = pydoc.locate(name)
    if code is None and kind == "network":
        package = importlib.import_module(_ARCHITECTURES)
        last = name.rpartition(".")[2]
        code = recursive_find_python_class(str(Path(package.__path__[0])), last, _ARCHITECTURES)
    return code
