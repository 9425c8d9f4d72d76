"""A proposal that a site takes part in, in a private file of the site."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from nnunetv2_federated.federation.choosing import ChoiceProposal
from nnunetv2_federated.federation.errors import CheckpointError, SiteError
from nnunetv2_federated.federation.evaluation import EvaluationProposal
from nnunetv2_federated.federation.files import read_state, write_state
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal

_FORMAT = 2
_REMEDY = "delete it; the site then has to be asked to join again"

Kind = TypeVar("Kind", Proposal, PlanProposal, EvaluationProposal, ChoiceProposal)


class ProposalFile(Generic[Kind]):
    """Keeps one proposal, with what the site notes beside it.

    Parameters
    ----------
    path
        The file; its folder is made private.
    kind
        Type of the proposal.
    """

    def __init__(self, path: Path, kind: type[Kind]) -> None:
        self._path = path
        self._kind: type[Kind] = kind

    def write(self, proposal: Kind, **notes: str) -> None:
        """Replace the file."""
        write_state(self._path, {**notes, "proposal": asdict(proposal)}, _FORMAT)

    def read(self) -> tuple[Kind, dict[str, Any]] | None:
        """Return the proposal and the notes; ``None`` if there is no file.

        Raises
        ------
        CheckpointError
            If the file is damaged or of another format: it is checked as if it came from elsewhere.
        """
        content = read_state(self._path, _FORMAT, _REMEDY)
        if content is None:
            return None
        try:
            proposal = self._kind.from_json(json.dumps(content.pop("proposal")))
        except (KeyError, TypeError, SiteError) as error:
            raise CheckpointError(f"{self._path} is damaged: {_REMEDY}") from error
        return proposal, content
