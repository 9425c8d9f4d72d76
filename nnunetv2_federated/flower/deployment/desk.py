"""What a site agrees to: approved federations, its limits, and the run as it is here."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context

from nnunetv2_federated.federation.errors import FederationError, SettingsError, SiteError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PlanProposal,
    PrepareTask,
    Proposal,
    TrainTask,
)
from nnunetv2_federated.federation.planning import check_code
from nnunetv2_federated.federation.settings import (
    RUN_FILE,
    FederationSettings,
    Run,
    SiteSettings,
    read_run,
)
from nnunetv2_federated.flower.launch import federation_folder
from nnunetv2_federated.training.dataset import Dataset, fold_split, load_dataset
from nnunetv2_federated.training.raw_site import DEFAULT_PROCESSES, RawSite
from nnunetv2_federated.training.site import Site, SitePool
from nnunetv2_federated.training.trainer import federated_trainer

logger = logging.getLogger(__name__)

PROPOSED, APPROVED, SPENT = "proposed.json", "approved.json", "spent.json"
_CURRENT, _PLANNING = "current.json", "planning.json"

Agreement = Proposal | PlanProposal


@dataclass(frozen=True)
class Limits:
    """What a site gives at most; ``None`` for no limit."""

    max_rounds: int | None = None
    max_local_epochs: int | None = None
    max_hours: float | None = None
    """Of training, over all rounds of a federation."""
    max_gpu_gb: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            fits = value is None or (type(value) in (int, float) and value > 0)
            if not fits:
                raise SettingsError(f"{name} {value}: must be a number above 0; or leave it out.")

    def check(self, settings: FederationSettings, site: str) -> None:
        """Raise ``SiteError`` if a federation wants more rounds or epochs than the site gives."""
        for name, wanted, most in (
            ("rounds", settings.rounds, self.max_rounds),
            ("local_epochs", settings.local_epochs, self.max_local_epochs),
        ):
            if most is not None and wanted > most:
                raise SiteError(
                    f"site {site} takes part in at most {most} {name}, the federation has {wanted}"
                )


@dataclass
class Desk:
    """One site's decisions, kept in a folder of its own.

    What a method raises may cross the wire: it names the site and a field, never a case or a path.

    Parameters
    ----------
    site
        Its name.
    dataset
        The site's, an id or a name.
    folder
        For what was proposed and approved.
    device
        To train on.
    limits
        What the site gives at most.
    ask
        Shown what is not approved yet, says whether to take part.
    processes
        For fingerprints and preprocessing; nnU-Net's defaults if ``None``.
    """

    site: str
    dataset: str
    folder: Path
    device: str
    limits: Limits = field(default_factory=Limits)
    pool: SitePool = field(default_factory=SitePool)
    ask: Callable[[Agreement], bool] | None = None
    processes: int | None = None

    def approve(self, approval: str) -> None:
        """Remember that the site takes part in what has this hash."""
        approved = sorted({*self._read(APPROVED, []), approval})
        self._write(APPROVED, approved)

    def proposed(self) -> Agreement | None:
        """Return what was asked last and is not approved."""
        content = self._read(PROPOSED, None)
        if content is None:
            return None
        kind = Proposal if content["what"] == Proposal.what else PlanProposal
        proposal = kind(**content["content"])
        return None if self._approved(proposal) else proposal

    def join(self, proposal: Proposal) -> None:
        """Take part in a federation that was approved and fits; prepare its folder.

        Raises
        ------
        SiteError
            If it is not approved, wants more than the site gives, or its plans are not the site's.
        """
        settings = self._settings(proposal)
        self.limits.check(settings, self.site)
        dataset = self._load_dataset(proposal)
        if dataset.plans_hash != proposal.plans_hash:
            raise SiteError(
                f"site {self.site}: its plans {proposal.plans} have SHA-256 "
                f"{dataset.plans_hash[:12]}, the federation's {proposal.plans_hash[:12]}; plan "
                "together, or copy the federation's plans and preprocess again"
            )
        check_code(dataset.plans, self.site)
        self._agree(proposal)
        run = self._run(proposal, settings, dataset)
        folder = federation_folder(run)
        if not _is_of(folder, proposal.started):
            self.pool.close()
            shutil.rmtree(folder, ignore_errors=True)
            (self.folder / SPENT).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RUN_FILE, run.to_json())
        self._write(_CURRENT, {"folder": str(folder)})

    def join_planning(self, proposal: PlanProposal) -> None:
        """Be planned for, if that was approved.

        Raises
        ------
        SiteError
            If it is not.
        """
        self._agree(proposal)
        self._write(_PLANNING, asdict(proposal))

    def find_raw(self, context: Context) -> RawSite:
        """Return the site's raw dataset, once planning was joined."""
        del context
        self._planning()
        try:
            return RawSite.open(
                self.dataset,
                site=self.site,
                fingerprint_processes=self.processes or RawSite.fingerprint_processes,
                preprocessing_processes=dict.fromkeys(DEFAULT_PROCESSES, self.processes)
                if self.processes
                else None,
            )
        except SettingsError as error:
            logger.exception("no raw dataset")
            raise SiteError(
                f"site {self.site}: no raw dataset; the site's log says more"
            ) from error

    def check_fingerprint(self, task: FingerprintTask) -> None:
        """Raise ``SiteError`` if a fingerprint finer than what was approved is asked for."""
        approved = self._planning()
        if task.min_cases != approved.min_cases:
            raise SiteError(f"site {self.site}: refused a fingerprint of other bins than approved")

    def check_prepare(self, task: PrepareTask) -> None:
        """Raise ``SiteError`` if more would be changed at the site than was approved."""
        approved = self._planning()
        for configuration in task.configurations:
            if configuration not in approved.configurations:
                raise SiteError(
                    f"site {self.site}: refused to preprocess {configuration[:40]}, which was not "
                    "approved"
                )
        if task.replace_plans and not approved.replace_plans:
            raise SiteError(f"site {self.site}: refused to replace plans, which was not approved")

    def _planning(self) -> PlanProposal:
        content = self._read(_PLANNING, None)
        if content is None:
            raise SiteError(f"site {self.site} has not agreed to be planned for")
        return PlanProposal(**content)

    def _approved(self, agreement: Agreement) -> bool:
        return agreement.approval() in self._read(APPROVED, [])

    def _agree(self, agreement: Agreement) -> None:
        """Raise ``NotApprovedError`` until it was approved."""
        if self._approved(agreement):
            return
        self._write(PROPOSED, {"what": agreement.what, "content": asdict(agreement)})
        if self.ask is None or not self.ask(agreement):
            raise NotApprovedError(
                f"site {self.site} has not approved {agreement.what} {agreement.approval()[:12]} "
                "yet"
            )
        self.approve(agreement.approval())

    def find(self, context: Context) -> Site:
        """Return the living site of the federation joined last."""
        del context
        current = self._read(_CURRENT, None)
        if current is None:
            raise SiteError(f"site {self.site} has not joined a federation")
        folder = Path(current["folder"])
        self._limit_gpu()
        try:
            return self.pool.get(read_run(folder), 0, folder)
        except SettingsError as error:  # about this machine: for its log, not for the server
            logger.exception("the site cannot be built")
            raise SiteError(f"site {self.site}: cannot train; the site's log says more") from error

    def check_task(self, task: TrainTask, settings: FederationSettings) -> None:
        """Raise ``SiteError`` if a round is not one of the federation that was approved."""
        if not 0 <= task.server_round < settings.rounds:
            raise SiteError(f"site {self.site}: refused round {task.server_round}")
        if task.local_epochs != settings.local_epochs:
            raise SiteError(f"site {self.site}: refused {task.local_epochs} local epochs")
        if self.limits.max_hours is not None and self._spent() >= self.limits.max_hours:
            raise SiteError(
                f"site {self.site} has given its {self.limits.max_hours:g} hours of training"
            )

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Add the time within to what the site has given."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._write(SPENT, {"hours": self._spent() + (time.monotonic() - started) / 3600})

    def _spent(self) -> float:
        return float(self._read(SPENT, {"hours": 0.0})["hours"])

    def _settings(self, proposal: Proposal) -> FederationSettings:
        try:
            settings = FederationSettings(**proposal.settings)
            federated_trainer(proposal.trainer)
        except (SettingsError, TypeError) as error:
            raise SiteError(f"site {self.site}: {error}") from error
        return settings

    def _load_dataset(self, proposal: Proposal) -> Dataset:
        try:
            dataset = load_dataset(self.dataset, proposal.plans)
            fold_split(dataset, proposal.configuration, proposal.fold)
        except SettingsError as error:
            logger.exception("the dataset does not fit")
            raise SiteError(
                f"site {self.site}: no dataset preprocessed for {proposal.configuration} with "
                f"{proposal.plans}, fold {proposal.fold}; the site's log says more"
            ) from error
        return dataset

    def _run(self, proposal: Proposal, settings: FederationSettings, dataset: Dataset) -> Run:
        training, validation = fold_split(dataset, proposal.configuration, proposal.fold)
        # limits that belong to all sites together mean nothing in a run with one
        own = asdict(settings) | {
            "sites_per_round": None,
            "min_replies": None,
            "seed": settings.seed + proposal.position,
        }
        return Run(
            dataset=dataset.name,
            configuration=proposal.configuration,
            fold=proposal.fold,
            trainer=proposal.trainer,
            plans=proposal.plans,
            device=self.device,
            settings=FederationSettings(**own),
            sites=(SiteSettings(self.site, dataset.name, tuple(training), tuple(validation)),),
            started=proposal.started,
        )

    def _limit_gpu(self) -> None:
        most = self.limits.max_gpu_gb
        if most is None or self.device != "cuda":
            return
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))

    def _read(self, name: str, default: Any) -> Any:  # noqa: ANN401  # JSON
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return default

    def _write(self, name: str, content: Mapping[str, Any] | list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / name, json.dumps(content, indent=1))


class NotApprovedError(SiteError):
    """A site was asked and has not decided yet; it may be asked again."""


def _is_of(folder: Path, started: str) -> bool:
    try:
        return read_run(folder).started == started
    except FederationError:
        return False
