"""What a tuning leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.federation.optimism import Optimism
from nnunetv2_federated.federation.settings import FederationSettings


@dataclass(frozen=True)
class TuningResult:
    """What a tuning found, so far."""

    folder: Path
    """Folder of the study; the same call goes on there."""
    report: Path
    """Report in one HTML file."""
    settings: FederationSettings | None
    """Best settings; ``None`` before a trial has a score."""
    export: Path | None
    """Settings file with them, for ``nnUNetv2_train_federated``."""
    comparison: Path | None
    """Settings file of ``nnUNetv2_federated_compare``; ``None`` if the default is the best, or
    sites are datasets of their own, which it does not compare."""
    verdict: str
    """Score, default, difference and noise in one line."""
    stopped: str | None
    """Why not all trials were trained; ``None`` if they were."""
    optimism: Optimism | None = None
    """Scores on the folds of ``--nested``; ``None`` before one was trained, or without them."""
