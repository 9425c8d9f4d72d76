"""A trained model of nnU-Net's, converted to what travels: no pickle leaves this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import FederationError, SettingsError, SiteError
from nnunetv2_federated.federation.evaluated_model import (
    ModelDescription,
    Postprocessing,
    of_dataset,
)
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.nnunet.data.dataset import read_json, read_plans_file
from nnunetv2_federated.nnunet.evaluation.built_model import (
    Architecture,
    Machine,
    check_architecture,
    network_of,
    segments,
)
from nnunetv2_federated.nnunet.evaluation.model_files import ModelFiles, WhichModel, open_model
from nnunetv2_federated.nnunet.evaluation.postprocessing import LONGEST, read_postprocessing
from nnunetv2_federated.nnunet.training.safe_checkpoint import Checkpoint, read_checkpoint
from nnunetv2_federated.nnunet.training.weights import network_hash, num_values, to_vector


def read_model(
    path: Path, which: WhichModel, store: WeightsStore, machine: Machine, *, postprocess: bool
) -> ModelDescription:
    """Read a trained model, and keep its weights as vectors.

    Parameters
    ----------
    path
        nnU-Net's result folder, a fold of it, or an exported zip, from any source.
    which
        Folds, checkpoint and configuration.
    store
        Receives the vectors.
    machine
        Where the network is built once, and code that it may name.
    postprocess
        Whether the postprocessing that was found for these folds, if there is one, belongs to it.

    Raises
    ------
    SettingsError
        If the files are no trained model, or name code that is not allowed.
    """
    with open_model(path, which) as files:
        try:
            return _described(files, path, store, machine, postprocess=postprocess)
        except SiteError as error:
            reason = str(error).removeprefix(f"site {path.name}: ")
            raise SettingsError(f"{path}: {reason}.") from error


def _described(
    files: ModelFiles, path: Path, store: WeightsStore, machine: Machine, *, postprocess: bool
) -> ModelDescription:
    plans = read_plans_file(files.folder / "plans.json")
    dataset_json = _dataset_json(files.folder / "dataset.json")
    first = read_checkpoint(files.checkpoints[0])
    architecture = Architecture(plans, dataset_json, first.configuration, first.trainer)
    check_architecture(architecture, path.name, machine)
    if segments(first.trainer, machine):
        dataset_json.pop("classes", None)  # those of whole images are not this model's
    network = network_of(architecture, machine)
    weights = []
    for number, file in enumerate(files.checkpoints):
        checkpoint = first if number == 0 else read_checkpoint(file)
        _check_same(checkpoint, first, file)
        try:
            network.load_state_dict(checkpoint.weights)
        except RuntimeError as error:
            raise SettingsError(
                f"{file}: has weights of another network than {first.configuration} of its plans "
                f"({clean(str(error).partition(':')[2], 100)}): copy the whole model again."
            ) from error
        weights.append(store.put(to_vector(network)))
    try:
        return ModelDescription(
            plans={key: value for key, value in plans.items() if key != "dataset_name"},
            dataset_json=dataset_json,
            configuration=first.configuration,
            trainer=first.trainer,
            folds=list(files.folds),
            weights=weights,
            values=num_values(network),
            network_hash=network_hash(network),
            mirroring_axes=list(first.mirroring_axes),
            postprocessing=_postprocessing(files) if postprocess else [],
            threshold=_threshold(files),
        )
    except FederationError:
        raise
    except ValueError as error:
        raise SettingsError(f"{path}: cannot be evaluated ({clean(error)}).") from error


def _dataset_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: is no dataset.json of nnU-Net's.")
    return of_dataset(content)


def _check_same(checkpoint: Checkpoint, first: Checkpoint, file: Path) -> None:
    for field in ("trainer", "configuration"):
        ours, theirs = getattr(checkpoint, field), getattr(first, field)
        if ours != theirs:
            raise SettingsError(
                f"{file}: its {field} is {ours}, of the first fold {theirs}; folds of one model "
                "have the same."
            )


def _postprocessing(files: ModelFiles) -> list[Postprocessing]:
    path = files.postprocessing
    if not path.is_file():
        return []
    with path.open("rb") as file:
        return read_postprocessing(file.read(LONGEST + 1), str(path))


def _threshold(files: ModelFiles) -> float:
    """Return a classifier's threshold: the mean of those that its folds' validations chose."""
    found = []
    for checkpoint in files.checkpoints:
        path = checkpoint.parent / "validation" / "summary.json"
        summary = read_json(path) if path.is_file() else {}
        chosen = summary.get("threshold", 0.5) if isinstance(summary, dict) else 0.5
        found.append(float(chosen) if isinstance(chosen, int | float) else 0.5)
    return sum(found) / len(found)
