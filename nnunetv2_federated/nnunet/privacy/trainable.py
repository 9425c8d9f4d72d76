"""Which parameters are trained: noise grows with their number, so fewer may learn more."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from torch import nn

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import few

_NORMS = (
    nn.modules.batchnorm._NormBase,  # InstanceNorm and BatchNorm of 1, 2 and 3 dimensions
    nn.GroupNorm,
    nn.LayerNorm,
)
_COMPILED = "_orig_mod."
"""What torch.compile puts before the name of a parameter."""


def train_only(network: nn.Module, choice: str) -> list[str]:
    """Freeze all parameters of a network but some.

    Parameters
    ----------
    network
        Network of an initialised trainer.
    choice
        Value of ``--dp-trainable``: ``all``; ``norm`` for scales and shifts of normalisation;
        ``head`` for the last layers (nnU-Net's ``seg_layers``, a classifier's head); else a pattern
        of names with ``*``, such as ``encoder.stages.0.*``. Several are joined by commas. It is no
        regular expression: the choice may come from a coordinator, and such can take for ever.

    Returns
    -------
    list
        Names of the parameters that are trained.

    Raises
    ------
    SettingsError
        If the choice fits no parameter.
    """
    trained = {id(p) for part in choice.split(",") for p in _chosen(network, part.strip())}
    names = []
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if parameter.requires_grad:
            names.append(name.replace(_COMPILED, ""))
    return names


def _chosen(network: nn.Module, part: str) -> list[nn.Parameter]:
    named = {n.replace(_COMPILED, ""): p for n, p in network.named_parameters()}
    if part == "all":
        return list(named.values())
    if part == "norm":
        found = list(_of_norms(network))
    elif part == "head":
        found = list(_of_head(network))
    else:
        found = [p for name, p in named.items() if fnmatch.fnmatchcase(name, part)]
    if not found:
        names = list(named)
        raise SettingsError(
            f"--dp-trainable {part} fits no parameter: give norm, head, all, or a pattern with * "
            f"for names such as {few([names[0], names[len(names) // 2], names[-1]])}."
        )
    return found


def _of_norms(network: nn.Module) -> Iterator[nn.Parameter]:
    for module in network.modules():
        if isinstance(module, _NORMS):
            yield from module.parameters(recurse=False)


def _of_head(network: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the last layers, where nnU-Net, timm and torchvision have them."""
    network = getattr(network, _COMPILED.removesuffix("."), network)
    places = [(module, "seg_layers") for module in (network, *network.children())]
    places += [(network, name) for name in ("head", "fc", "classifier")]
    for module, name in places:
        layers = getattr(module, name, None)
        if isinstance(layers, nn.Module):
            yield from layers.parameters()
