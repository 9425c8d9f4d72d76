"""Which packages define what a federation runs, and whether another machine has the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

_ALWAYS = ("nnunetv2", "nnunetv2_federated", "torch", "dynamic_network_architectures", "timm")
_NO_PACKAGE = "no package"
_MOST = 100


def defining_packages(plans: Mapping[str, Any], trainer_name: str) -> dict[str, str]:
    """Return the packages that define what plans and the trainer's name stand for.

    Parameters
    ----------
    plans
        Of the federation.
    trainer_name
        As ``-tr``.

    Returns
    -------
    dict
        Name of the distribution, for example ``dynamic-network-architectures``, to its version. A
        module that no package installed, such as a trainer in ``nnUNet_extTrainer``, stands there
        by its own name with ``no package``.

    Raises
    ------
    SettingsError
        If there is no such trainer.
    """
    modules = {
        *_ALWAYS,
        *_modules_of_networks(plans),
        *(
            ancestor.__module__.partition(".")[0]
            for ancestor in federated_trainer(trainer_name).__mro__
            if issubclass(ancestor, nnUNetTrainer)
        ),
    }
    installed = packages_distributions()
    found = {}
    for module in sorted(modules):
        for name in sorted(set(installed.get(module, [module]))):
            found[name] = _version(name)
    return dict(sorted(found.items()))


def compare_packages(theirs: Mapping[str, str]) -> list[str]:
    """Return a line for each package that is another here than where a federation was proposed.

    Parameters
    ----------
    theirs
        Of :func:`defining_packages` there.
    """
    lines = []
    for name in sorted(theirs)[:_MOST]:
        here, there = _version(name), theirs[name]
        shown = clean(name, 80)
        if there == _NO_PACKAGE:
            lines.append(
                f"{shown}: belongs to no package; compare its files with the coordinator's"
            )
        elif here != there:
            present = "not installed" if here == _NO_PACKAGE else here
            lines.append(f"{shown}: {present} here, {clean(there, 80)} at the coordinator")
    if len(theirs) > _MOST:
        lines.append(f"{len(theirs) - _MOST} more packages were not compared")
    return lines


def _modules_of_networks(plans: Mapping[str, Any]) -> Iterator[str]:
    for configuration in plans["configurations"].values():
        architecture = configuration.get("architecture")
        if architecture is None:
            continue
        given = architecture["arch_kwargs"]
        imported = [given[name] for name in architecture["_kw_requires_import"]]
        for name in (architecture["network_class_name"], *imported):
            if name is not None:
                yield str(name).partition(".")[0]


def _version(name: str) -> str:
    try:
        return version(name)
    except (PackageNotFoundError, ValueError):  # the last: no name at all
        return _NO_PACKAGE
