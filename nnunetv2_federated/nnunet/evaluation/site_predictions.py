"""A site's predictions of its validation cases of all folds, measured by nnU-Net's functions."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.configuration import default_num_processes
from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, label_or_region_to_key
from nnunetv2.postprocessing.remove_connected_components import (
    load_postprocess_save,
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.best_configuration import Candidate, Labels
from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.federation.messages import FullValidation
from nnunetv2_federated.nnunet.data.dataset import compared_labels
from nnunetv2_federated.nnunet.summary import join_summaries, summarise

Starmap = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Sequence[Any]]
"""As ``multiprocessing.Pool.starmap``."""


@contextlib.contextmanager
def in_workers(case_done: Callable[[], None] = lambda: None) -> Iterator[Starmap]:
    """Measure cases in worker processes, as many as nnU-Net's.

    Parameters
    ----------
    case_done
        Called after each case; may raise to stop.

    Yields
    ------
    callable
        For :meth:`SitePredictions.score`. Raises ``FederationError`` if a worker was ended, for
        which a pool of :mod:`multiprocessing` would wait for ever.
    """
    workers = ProcessPoolExecutor(default_num_processes, multiprocessing.get_context("spawn"))

    def starmap(function: Callable[..., Any], cases: Iterable[tuple[Any, ...]]) -> list[Any]:
        found = []
        for one in [workers.submit(function, *case) for case in cases]:
            found.append(one.result())
            case_done()
        return found

    try:
        yield starmap
    except BrokenProcessPool as error:
        raise FederationError(
            "a process that measured predictions was ended, perhaps for want of memory; "
            "nnUNet_def_n_proc=1 takes least"
        ) from error
    finally:
        workers.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class SitePredictions:
    """Predictions of a site's validation cases."""

    site: str
    files: Mapping[str, Mapping[str, Path]]
    """By configuration and case: the predicted segmentation; for ensembles nnU-Net's ``.npz`` and
    ``.pkl`` lie beside it."""
    references: Path
    """Folder of the reference segmentations."""
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]

    def score(self, candidate: Candidate, starmap: Starmap) -> FullValidation:
        """Measure a candidate on all cases; only means and how many cases they are of are returned.

        Parameters
        ----------
        candidate
            Configurations of this site, and postprocessing.
        starmap
            Measures the cases.
        """
        written = Written(
            str(self.dataset_json["file_ending"]),
            PlansManager(dict(self.plans)).image_reader_writer_class(),
            label_manager_of(self.plans, self.dataset_json),
        )
        cases = [
            (
                [self.files[name][case] for name in candidate.configurations],
                self.references / (case + written.ending),
                candidate.removals,
                written,
            )
            for case in self.files[candidate.configurations[0]]
        ]
        rows = [{"metrics": metrics} for metrics in starmap(measure, cases)]
        summary = join_summaries([{"metric_per_case": rows, "mean": rows[0]["metrics"]}])
        return summarise(self.site, len(rows), summary)


def label_manager_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> LabelManager:
    """Return nnU-Net's label manager of a dataset."""
    return PlansManager(dict(plans)).get_label_manager(dict(dataset_json))


class Written(NamedTuple):
    """How segmentations of a dataset are written."""

    ending: str
    reader_writer: Any
    """nnU-Net's, for files of this ending."""
    label_manager: LabelManager


def measure(
    predictions: Sequence[Path],
    reference: Path,
    removals: Sequence[Labels],
    written: Written,
) -> dict[str, dict[str, float]]:
    """Return the metrics of a case by label or region, named as in nnU-Net's summaries.

    Parameters
    ----------
    predictions
        Segmentations of one model, or of the members of an ensemble.
    reference
        Reference segmentation.
    removals
        Unions of labels of each of which only the largest component is kept, one after another.
    written
        How all of them are written.
    """
    ending, reader_writer, label_manager = written
    with tempfile.TemporaryDirectory() as scratch:
        prediction = predictions[0]
        if len(predictions) > 1:
            truncated = str(Path(scratch, "ensemble"))
            files = [str(probabilities_of(path, ending)) for path in predictions]
            merge_files(files, truncated, ending, reader_writer, label_manager)
            prediction = Path(truncated + ending)
        if removals:
            # a list is a union of labels for nnU-Net's function
            kwargs = [{"labels_or_regions": list(labels)} for labels in removals]
            functions = [remove_all_but_largest_component_from_segmentation] * len(removals)
            postprocessed = Path(scratch, "postprocessed" + ending)
            load_postprocess_save(
                str(prediction), str(postprocessed), reader_writer, functions, kwargs
            )
            prediction = postprocessed
        found = compute_metrics(
            str(reference),
            str(prediction),
            reader_writer,
            compared_labels(label_manager),
            label_manager.ignore_label,
        )["metrics"]
    return {label_or_region_to_key(label): metrics for label, metrics in found.items()}


def labels_of(label_or_region: Any) -> Labels:  # noqa: ANN401  # an int, or a tuple of them
    """Return the labels of a class or a region."""
    found = label_or_region if isinstance(label_or_region, tuple) else (label_or_region,)
    return tuple(int(label) for label in found)


def probabilities_of(path: Path, ending: str) -> Path:
    """Return the file of the softmax outputs beside a segmentation, which ``--npz`` saves."""
    return path.with_name(path.name.removesuffix(ending) + ".npz")
