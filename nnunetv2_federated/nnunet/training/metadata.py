"""The files that nnU-Net's inference needs beside the checkpoints of a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.files import replacing, write_atomically
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds


def write_metadata(trainer: FederatedRounds, folder: Path, fingerprint: Path) -> None:
    """Write plans, description and fingerprint of the dataset.

    Parameters
    ----------
    trainer
        Trainer of the model.
    folder
        nnU-Net's result folder of all folds.
    fingerprint
        ``dataset_fingerprint.json`` of the preprocessed dataset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plans.json", trainer.plans_manager.plans)
    write_json(folder / "dataset.json", trainer.dataset_json)
    with replacing(folder / fingerprint.name) as temporary:
        shutil.copyfile(fingerprint, temporary)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as nnU-Net does, but atomically: a full disk must not cost the earlier file."""
    write_atomically(path, json.dumps(content, indent=4))
