"""What a user chose, before it is resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nnunetv2_federated.federation.partition import PartitionSettings

Options = dict[str, Any]
"""What the user chose, by the flag's name; what was not chosen is absent."""


def partition_settings(options: Mapping[str, Any]) -> PartitionSettings:
    """Build validated settings from what the user chose."""
    chosen = pick(options, ("sites", "alpha", "stratified_fraction", "min_cases", "seed"))
    if "partition" in options:
        chosen["method"] = options["partition"]
    return PartitionSettings(**chosen)


def pick(options: Mapping[str, Any], names: Iterable[str]) -> Options:
    """Take the named options that were chosen."""
    return {name: options[name] for name in names if name in options}
