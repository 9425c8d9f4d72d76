"""A queue: trainings of several folds and configurations, begun and approved as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import check_fold, check_name

Fold = int | str
Folds = tuple[Fold, ...]


def trainings_of(queue: Mapping[str, Folds]) -> Iterator[tuple[str, Fold]]:
    """Yield the configuration and the fold of each training, in their order."""
    for configuration, folds in queue.items():
        for fold in folds:
            yield configuration, fold


def check_queue(queue: Mapping[str, Folds], configuration: str, fold: Fold) -> None:
    """Check a queue, and that a training is one of it.

    Raises
    ------
    SettingsError
        If a name or a fold is none, one is named twice, or the training is not in the queue.
    """
    for name, folds in queue.items():
        check_name("configuration", name)
        for one in folds:
            check_fold(one)
        if not folds or len(set(folds)) < len(folds):
            raise SettingsError(f"the queue has no folds of {name}, or one of them twice.")
    if (configuration, fold) not in trainings_of(queue):
        raise SettingsError(f"{configuration} fold {fold} is not in the queue that it belongs to.")


def describe_queue(queue: Mapping[str, Folds]) -> str:
    """Return a queue in words: ``2d, folds 0 1 2; 3d_fullres, fold all``."""
    return "; ".join(
        f"{name}, {'folds' if len(folds) > 1 else 'fold'} {' '.join(map(str, folds))}"
        for name, folds in queue.items()
    )


def id_in_queue(queue_id: str, configuration: str, fold: Fold) -> str:
    """Return the identifier of one training of a queue."""
    return f"{queue_id}.{configuration}.{fold}"


def ids_of_queue(
    run_id: str, configuration: str, fold: Fold, queue: Mapping[str, Folds]
) -> list[str]:
    """Return the identifiers of all trainings of the queue that a training belongs to.

    Parameters
    ----------
    run_id
        Identifier of the training, of :func:`id_in_queue`.
    configuration, fold
        Of the training.
    queue
        Queue of the training; empty for one of its own.

    Raises
    ------
    SettingsError
        If the identifier is not that of a training of a queue.
    """
    if not queue:
        return [run_id]
    queue_id = id_of_queue(run_id, configuration, fold)
    return [id_in_queue(queue_id, *training) for training in trainings_of(queue)]


def id_of_queue(run_id: str, configuration: str, fold: Fold) -> str:
    """Return the identifier that :func:`id_in_queue` was given.

    Raises
    ------
    SettingsError
        If the identifier is not that of a training of a queue.
    """
    ending = id_in_queue("", configuration, fold)
    if not run_id.endswith(ending):
        raise SettingsError(f"run {run_id} is not of {configuration} fold {fold} of a queue.")
    return run_id.removesuffix(ending)
