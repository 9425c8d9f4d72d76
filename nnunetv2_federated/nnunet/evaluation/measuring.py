"""Predict a site's cases with each model of a proposal, and summarise the metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import SURFACE, EvaluationProposal, Metric
from nnunetv2_federated.federation.files import private_folder
from nnunetv2_federated.federation.moments import (
    Units,
    Values,
    classes_are_large,
    differences,
    moments_of_labels,
)
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.nnunet.data.case_progress import counted
from nnunetv2_federated.nnunet.data.dataset import compared_labels
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.built_model import (
    Machine,
    build_model,
    build_predictor,
    label_keys,
)
from nnunetv2_federated.nnunet.evaluation.case_metrics import metrics_of_case
from nnunetv2_federated.nnunet.evaluation.postprocessing import postprocess
from nnunetv2_federated.nnunet.evaluation.raw_cases import Cases
from nnunetv2_federated.nnunet.evaluation.tester import tester_of
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer


@dataclass(frozen=True)
class Measurement:
    """What is measured at a site, and where."""

    proposal: EvaluationProposal
    """Models, metrics, and how many patients are told of at least."""
    cases: Cases
    units: Units
    """Number of each case's patient, in the order of the cases."""
    store: WeightsStore
    """Has the weights."""
    site: str
    """Name of the site, for messages."""
    machine: Machine
    case_done: Callable[[], None]
    """Called after each case; may raise to stop."""

    def parts(self) -> dict[str, Any]:
        """Return ``models``, ``difference`` and ``scores`` of the site's answer.

        Raises
        ------
        SiteError
            If a model cannot be built or tested here.
        """
        models, least = self.proposal.models, self.proposal.min_cases
        if models[0].classifies:
            scores = [self._scores(model) for model in models]
            return {"models": [], "difference": None, "scores": scores}
        values = [self._values(model) for model in models]
        difference = None
        if len(values) > 1:
            paired = differences(values[0], values[1], self.units, least)
            difference = moments_of_labels(paired, self.units, least)
        quantiles = self.proposal.quantiles
        return {
            "models": [moments_of_labels(v, self.units, least, quantiles) for v in values],
            "difference": difference,
            "scores": [],
        }

    def _values(self, model: ModelDescription) -> dict[str, dict[Metric, Values]]:
        """Predict each case, and return its metrics by label."""
        predictor = build_predictor(model, self.store, self.site, self.machine)
        predicted = _predictions(predictor, self.cases, self.store.folder)
        title, number = f"{self.site}: prediction", len(self.cases.images)
        rows = []
        for case, file in counted(predicted, title, number):
            with file as prediction:
                rows.append(self._compare(model, predictor, case, prediction))
            self.case_done()
        return {
            label: {m: np.array([row[label][m] for row in rows]) for m in self.proposal.metrics}
            for label in label_keys(model)
        }

    def _compare(
        self,
        model: ModelDescription,
        predictor: Any,  # noqa: ANN401  # nnU-Net's predictor
        case: str,
        prediction: str,
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of one predicted case, by label."""
        manager = predictor.label_manager
        reader = predictor.plans_manager.image_reader_writer_class()
        postprocess(prediction, model.postprocessing, reader)
        found = metrics_of_case(
            self.cases.references[case],
            prediction,
            reader,
            compared_labels(manager),
            manager.ignore_label,
            surface=bool(set(SURFACE) & set(self.proposal.metrics)),
        )
        return {label_or_region_to_key(label): metrics for label, metrics in found.items()}

    def _scores(self, model: ModelDescription) -> dict[str, float | None] | None:
        """Return a classifier's metrics over all cases; ``None`` if a class is too small."""
        classes = [int(self.cases.references[case]) for case in self.cases.images]
        if not classes_are_large(classes, self.units, self.proposal.min_cases):
            return None
        tester = tester_of(check_trainer(model.trainer, self.machine.allowed_modules))
        test = getattr(tester, "test_networks", None)
        if test is None:
            raise SiteError(
                f"site {self.site}: models of {model.trainer} cannot be evaluated: its tester has "
                "no test_networks"
            )
        built = build_model(model, self.store, self.site, self.machine)
        records = test(built, self.cases.images, self.cases.references)
        self.case_done()
        found = tester.measure(records, None)
        return {name: float(v) if np.isfinite(v) else None for name, v in found.items()}


class _File:
    """A prediction that is deleted after it was used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        return str(self._path)

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def _predictions(predictor: Any, cases: Cases, folder: Path) -> Iterator[tuple[str, _File]]:  # noqa: ANN401  # nnU-Net's predictor
    """Predict case by case; each prediction is on the disk only until it was measured."""
    scratch = folder / "predictions"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    private_folder(scratch)
    ending = predictor.dataset_json["file_ending"]
    try:
        for case, images in cases.images.items():
            with quiet():
                predictor.predict_from_files_sequential([list(images)], [str(scratch / case)])
            yield case, _File(scratch / (case + ending))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
