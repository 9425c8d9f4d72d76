"""A site's answers in a masked sum, one at a time, each after what it remembers is on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nnunetv2_federated.federation.errors import CheckpointError, SiteError
from nnunetv2_federated.federation.files import (
    private_folder,
    read_state,
    wait_for_turn,
    write_state,
)
from nnunetv2_federated.secure.site_state import SiteState, Step

_FORMAT = 1
_REMEDY = (
    "without it, or with an older copy, this site forgets which rounds it has masked, and could "
    "be asked for one again; delete it only if no run of before is ever continued here"
)

StepT = TypeVar("StepT", bound=Step[Any])


def answer(path: Path, step: Callable[[SiteState | None], StepT]) -> StepT:
    """Take a step of a sum: the only way in which a site may answer.

    A lock is held from reading what the site remembers until what it remembers now is on the disk:
    two answers at a time could each be right by what the site remembered before, and together tell
    more of its update than one sum. A second process waits until the first one has answered or has
    ended.

    Parameters
    ----------
    path
        File with what the site remembers; it and its lock are in a folder of this user's only.
    step
        Given what the site remembers, ``None`` before its first round, returns what it remembers
        from then on, and its answer: a method of :class:`.SiteSide`, with :func:`known` for all
        stages but the first.

    Raises
    ------
    CheckpointError
        If the file is damaged or of another format: the site then answers nothing.
    SiteError
        If the step is refused; what the site remembers is as before.
    """
    private_folder(path.parent)
    with wait_for_turn(path.with_name(path.name + ".lock")):
        before = _load(path)
        taken = step(before)
        if taken.state != before:
            write_state(path, {"state": taken.state.to_json()}, _FORMAT)
        return taken


def known(before: SiteState | None) -> SiteState:
    """Return what a site remembers, for a stage that is not the first one.

    Raises
    ------
    SiteError
        If it remembers nothing.
    """
    if before is None:
        raise SiteError("refused: this site has stated no keys")
    return before


def _load(path: Path) -> SiteState | None:
    content = read_state(path, _FORMAT, _REMEDY)
    if content is None:
        return None
    try:
        return SiteState.from_json(content["state"])
    except (SiteError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {_REMEDY}") from error
