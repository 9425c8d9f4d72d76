"""The packages that define what a federation runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.federation.package_versions import installed_version
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

_ALWAYS = ("nnunetv2", "nnunetv2_federated", "torch", "dynamic_network_architectures", "timm")


def defining_packages(plans: Mapping[str, Any], trainer_name: str) -> dict[str, str]:
    """Return the packages that define what plans and the trainer's name stand for.

    Parameters
    ----------
    plans
        Plans of the federation.
    trainer_name
        Name of the trainer, as ``-tr``.

    Returns
    -------
    dict
        Name of the distribution, for example ``dynamic-network-architectures``, to its version. A
        module that no package installed, such as a trainer in ``nnUNet_extTrainer``, has its own
        name and the version ``no package``.

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
    installed = _packages_of_modules()
    versions = {}
    for module in sorted(modules):
        for name in sorted(set(installed.get(module, [module]))):
            versions[name] = installed_version(name)
    return dict(sorted(versions.items()))


@functools.cache  # reading the file lists of all packages takes about a second
def _packages_of_modules() -> Mapping[str, list[str]]:
    return packages_distributions()


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
