"""A site at which a trained model is evaluated: its raw cases, and what it tells of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.disk import NO_ROOM, NOT_ALLOWED
from nnunetv2_federated.federation.errors import FederationError, SiteError
from nnunetv2_federated.federation.evaluated_model import hash_vector
from nnunetv2_federated.federation.evaluation import (
    SURFACE,
    EvaluationOffer,
    EvaluationProposal,
    SiteEvaluation,
    WeightsReceipt,
    WeightsTask,
)
from nnunetv2_federated.federation.moments import units_of
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.nnunet.data.dataset import find_raw
from nnunetv2_federated.nnunet.evaluation.built_model import (
    Architecture,
    Machine,
    check_architecture,
)
from nnunetv2_federated.nnunet.evaluation.measuring import Measurement
from nnunetv2_federated.nnunet.evaluation.raw_cases import Cases, RawCases
from nnunetv2_federated.nnunet.evaluation.tester import tester_of
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedSite:
    """A site's dataset in ``nnUNet_raw``, and the machine on which models are evaluated.

    The errors of its methods may leave the site: they name the site and a field, never a case, a
    file or a path. Those go to the site's log, and to :attr:`notes`.
    """

    dataset: str
    """Name of the dataset."""
    name: str
    """Name of the site."""
    machine: Machine
    store: WeightsStore
    """Keeps the weights that the site was sent."""
    case_done: Callable[[], None] = lambda: None
    """Called after each case; may raise to stop."""
    notes: list[str] = field(default_factory=list, compare=False)
    """What the log says of cases and files, for a command whose user may see them."""

    @classmethod
    def open(
        cls, name_or_id: str, machine: Machine, store: WeightsStore, site: str | None = None
    ) -> EvaluatedSite:
        """Find a raw dataset; it need not be preprocessed.

        Parameters
        ----------
        name_or_id
            ``Dataset501_Name`` or ``501``.
        machine, store
            Attributes of the same names.
        site
            Name of the site; ``None`` for the name of the dataset.

        Raises
        ------
        SettingsError
            If there is no such dataset, or ``nnUNet_raw`` is not set.
        """
        name = find_raw(name_or_id)
        return cls(name, site or name, machine, store)

    def check_models(self, proposal: EvaluationProposal) -> None:
        """Make sure that the models name allowed code only and fit here; no case is looked at.

        Raises
        ------
        SiteError
            If they do not.
        """
        with self._without_details():
            for model in proposal.models:
                check_architecture(Architecture.of(model), self.name, self.machine)

    def offer(self, proposal: EvaluationProposal) -> EvaluationOffer:
        """Say how many cases and patients there are, after checking that all can be evaluated.

        Raises
        ------
        SiteError
            If a model names code that is not allowed, is of other channels or labels, needs more
            memory or a package that is missing, or there are too few patients.
        """
        self.check_models(proposal)
        with self._without_details():
            for model in proposal.models:
                self._raw.check_declared(model)
            if set(SURFACE) & set(proposal.metrics) and find_spec("monai") is None:
                raise SiteError(
                    f"site {self.name}: {' and '.join(SURFACE)} need MONAI: "
                    'pip install "nnunetv2-federated[surface]" there, or choose other --metrics'
                )
            patients = self._raw.patients(self._cases(proposal).images)
            if len(patients.cases) < proposal.min_cases:
                raise SiteError(
                    f"site {self.name}: has {len(patients.cases)} {patients.unit}s to evaluate on; "
                    f"nothing is told of fewer than --min-cases {proposal.min_cases}"
                )
            return EvaluationOffer(
                site=self.name,
                cases=sum(map(len, patients.cases.values())),
                patients=len(patients.cases),
                unit=patients.unit,
                versions={name: version(name) for name in ("nnunetv2", "torch")},
                device=self.machine.device,
            )

    def receive(
        self, proposal: EvaluationProposal, task: WeightsTask, vector: Vector
    ) -> WeightsReceipt:
        """Keep the weights of one fold, if they are those that were described.

        Parameters
        ----------
        proposal
            What was agreed to.
        task
            Which weights they are.
        vector
            Weights, shape (parameters,).

        Raises
        ------
        SiteError
            If they are not.
        """
        models = proposal.models
        if task.model >= len(models) or task.fold >= len(models[task.model].folds):
            raise SiteError(f"site {self.name}: refused weights of a fold that was not described")
        expected = models[task.model].weights[task.fold]
        if hash_vector(vector) != expected:
            raise SiteError(f"site {self.name}: refused weights of another hash than described")
        return WeightsReceipt(self.name, self.store.put(vector))

    def check_weights(self, proposal: EvaluationProposal) -> None:
        """Raise ``SiteError`` unless all weights are there."""
        lacking = [h for m in proposal.models for h in m.weights if not self.store.has(h)]
        if lacking:
            raise SiteError(f"site {self.name}: was not sent the weights {lacking[0][:12]}")

    def measure(self, proposal: EvaluationProposal) -> SiteEvaluation:
        """Predict all cases with each model, and summarise how they compare with their references.

        Raises
        ------
        SiteError
            If weights are missing, or a case cannot be used; the log names it.
        """
        self.check_weights(proposal)
        with self._without_details():
            cases = self._cases(proposal)
            patients = self._raw.patients(cases.images)
            patient_of = {case: p for p, own in patients.cases.items() for case in own}
            units = units_of([patient_of[case] for case in cases.images])
            measurement = Measurement(
                proposal, cases, units, self.store, self.name, self.machine, self.case_done
            )
            return SiteEvaluation(
                site=self.name,
                cases=len(cases.images),
                patients=len(patients.cases),
                unit=patients.unit,
                **measurement.parts(),
            )

    @property
    def _raw(self) -> RawCases:
        return RawCases(self.dataset, self.name)

    def _cases(self, proposal: EvaluationProposal) -> Cases:
        trainer = check_trainer(proposal.models[0].trainer, self.machine.allowed_modules)
        return self._raw.cases(proposal.subset, tester_of(trainer))

    @contextlib.contextmanager
    def _without_details(self) -> Iterator[None]:
        """Re-raise errors that may name a case as ``SiteError`` that does not."""
        try:
            yield
        except SiteError:
            raise
        except Exception as error:
            logger.exception("%s failed", self.name)
            self.notes.append(f"{self.name}: {clean(error)}")
            if isinstance(error, OSError) and error.errno in NO_ROOM | NOT_ALLOWED:
                raise
            kind = "" if isinstance(error, FederationError) else f"{type(error).__name__}; "
            raise SiteError(
                f"site {self.name}: its dataset cannot be evaluated on; {kind}the site's log says "
                "more"
            ) from error
