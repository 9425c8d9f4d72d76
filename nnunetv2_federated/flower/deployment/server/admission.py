"""Who may take part in a run now: looked at anew before each message and each answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from nnunetv2_federated.secure.public_keys import fingerprint


class Register(Protocol):
    """Knows whose key may be used: :class:`.register.SiteRegister`."""

    def keys(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """Return the key of each site that may take part now, by name."""


class NodeControl(Protocol):
    """Keeps nodes out of the SuperLink: :class:`.control.Control`."""

    def unregister(self, node: int) -> None:
        """Take a node out."""


class Admission:
    """The sites of a run by their nodes, but for those that were turned out since.

    Parameters
    ----------
    register
        Keys of the sites, looked up anew each time. A site whose key is gone from it, or replaced,
        is turned out.
    control
        Unregisters the nodes that are turned out.
    nodes
        Node of each site of the run, by the site's name.
    """

    def __init__(self, register: Register, control: NodeControl, nodes: Mapping[str, int]) -> None:
        self._register = register
        self._control = control
        keys = register.keys()
        self._marks = {name: fingerprint(keys[name]) for name in nodes if name in keys}
        self._nodes = {node: name for name, node in nodes.items()}
        self._turned_out: dict[int, str] = {}

    def names(self, nodes: Collection[int]) -> dict[int, str]:
        """Return the name of each of these nodes that may take part now."""
        refused = self.refused()
        return {
            node: self._nodes[node] for node in nodes if node in self._nodes and node not in refused
        }

    def refused(self) -> dict[int, str]:
        """Return who may take part no more, by node, and why.

        Raises
        ------
        SettingsError
            If the register cannot be read: who may take part is not known then.
        """
        keys = self._register.keys()
        marks = {name: fingerprint(key) for name, key in keys.items()}
        for node, name in self._nodes.items():
            if node not in self._turned_out and marks.get(name) != self._marks.get(name, ""):
                self.turn_out(node, "its key was revoked")
        return dict(self._turned_out)

    def turn_out(self, node: int, reason: str) -> None:
        """Leave a site out for the rest of the run, and let the SuperLink answer it no more.

        Raises
        ------
        FederationError
            If the SuperLink does not answer.
        """
        if node in self._turned_out:
            return
        self._turned_out[node] = reason
        self._control.unregister(node)
