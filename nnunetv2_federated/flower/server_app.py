"""A whole federation, from the first question to the result folder."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.history import (
    HISTORY_FILE,
    History,
    PersonalRecord,
    RoundRecord,
    RoundSeconds,
    SiteSummary,
    told_before,
)
from nnunetv2_federated.federation.messages import (
    SiteDescription,
    Validation,
)
from nnunetv2_federated.federation.objective import Score
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.personal import describe_personal
from nnunetv2_federated.federation.privacy import describe_terms
from nnunetv2_federated.federation.run import Run, read_run
from nnunetv2_federated.federation.update_bound import UpdateBound, accepted_norms
from nnunetv2_federated.flower.participants import Participants, Requirements
from nnunetv2_federated.flower.records import pack_weights, run_folder
from nnunetv2_federated.flower.sampling import validation_share
from nnunetv2_federated.flower.site_grid import works_in_turn
from nnunetv2_federated.flower.site_questions import SiteQuestions
from nnunetv2_federated.flower.strategies import averages, build_strategy
from nnunetv2_federated.flower.strategy import PolyLRStrategy, RoundResult
from nnunetv2_federated.flower.strategy_state import dump, restore
from nnunetv2_federated.nnunet.data.dataset import compared_labels
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.summary import only_own, pool_sites
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.server_state import ServerState
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds
from nnunetv2_federated.report.federation_png import plot_federation

_PACKAGES = ("nnunetv2-federated", "nnunetv2", "flwr", "torch")


def make_server_app(
    observer: Observer | None = None,
    trainer: FederatedRounds | None = None,
    until: int | None = None,
) -> ServerApp:
    """Build the app.

    Parameters
    ----------
    observer
        Called when rounds, sites and steps begin or end; ``None`` to report nothing.
    trainer
        Trainer that holds the global model; ``None`` to build one from the run's settings.
    until
        Pause after this round, counted from 1; ``None`` to train all.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        folder = run_folder(context)
        run = read_run(folder)
        model = GlobalModel(run, trainer)
        try:
            Server(grid, run, model, observer or Observer()).run(until)
        finally:
            if trainer is None:  # whoever gave one closes it, after the validation
                model.close()

    return app


class Server:
    """One federation: the sites describe themselves, rounds, result.

    Parameters
    ----------
    grid
        Reaches the sites.
    run
        Every choice made.
    model
        Holds the global model and writes the result.
    observer
        Called when rounds, sites and steps begin or end.
    """

    def __init__(self, grid: Grid, run: Run, model: GlobalModel, observer: Observer) -> None:
        self.grid = grid
        self.settings = run.settings
        self.model = model
        self.observer = observer
        self.rounds: list[RoundRecord] = []
        self._personal: dict[str, PersonalRecord] = {}
        self._sent: Vector = model.vector
        self._run = run
        self._folder = model.folder
        self._clock = time.perf_counter()
        """When the round before was finished."""
        self._writing = 0.0
        """Seconds that its files took."""
        required = Requirements(
            model.network_hash,
            model.plans_hash,
            model.declared,
            model.packages,
            model.validated_classes,
        )
        self._participants = Participants(grid, run, required, observer)
        self._questions = SiteQuestions(grid, run, self._participants, observer)

    def run(self, until: int | None = None) -> None:
        """Train all rounds that are still to do, and write the result.

        Parameters
        ----------
        until
            Pause after this round, counted from 1: the state of the run is saved, no result is
            written, and the run continues as one that was stopped. ``None`` to train all.
        """
        inner = build_strategy(self.settings.strategy, self.settings.strategy_options)
        self._load(inner)
        self.observer.run_started(len(self.rounds), self.settings.rounds)
        for line in self.model.notes:
            self.observer.say(line)
        for place in self.model.open_trackers(self._history().header()):
            self.observer.say(f"tracked in {place}")
        self._participants.gather()
        for site in self._sites:
            if site.privacy is not None:
                self.observer.say(describe_terms(site.site, site.privacy))
        strategy = self._build_strategy(inner)
        self._train(strategy, self.settings.rounds if until is None else until)
        if (done := len(self.rounds)) < self.settings.rounds:
            self.observer.say(f"paused after round {done} of {self.settings.rounds}")
        else:
            self._conclude(strategy)

    def _conclude(self, strategy: PolyLRStrategy) -> None:
        """Write the result, and ask for all that comes after the last round."""
        self.model.save_final(self._sent)  # before anybody is asked, who may be silent
        self._validate_last(strategy)
        self.model.finish(self._sent)
        self._write_report()
        if self._run.study is not None:  # no trial is judged by more than its score
            return
        if self._run.remote_sites and not self.settings.withholds:
            self._validate_fully()
        if self.settings.personalises:
            self._personalise()

    def score(self, iterations: int) -> Score:
        """Let sites on other machines score the model of the last round that is done.

        Parameters
        ----------
        iterations
            Validation iterations, shared out by validation cases; trainers that validate every case
            do so.

        Raises
        ------
        RoundError
            If a site is not there or does not answer: scores of other sites cannot be compared.
        """
        own = None if self.model.val_iterations is None else iterations
        cases = {site.site: site.validation_cases for site in self._sites}
        shares = {s: n for s, n in validation_share(own, cases).items() if n}
        classes = len(self.rounds[-1].dice_per_class)
        return self._questions.score(pack_weights(self._sent), len(self.rounds), shares, classes)

    def _load(self, inner: Strategy) -> None:
        """Load what an earlier start of the run left, or the weights to begin with."""
        state = self.model.load_state()
        if state is not None:
            self._sent, self.rounds = state.weights, state.rounds
            restore(inner, state.strategy)
            if len(self.rounds) == self.settings.rounds:
                self._personal = told_before(self._folder)
        elif self._run.pretrained_weights:
            self.model.load_pretrained(self._run.pretrained_weights)
            self._sent = self.model.vector

    def _build_strategy(self, inner: Strategy) -> PolyLRStrategy:
        sites, earlier = len(self._participants.names), accepted_norms(self.rounds)
        return PolyLRStrategy(
            inner,
            replace(self.settings, val_iterations=self.model.val_iterations),
            self.model.schedule.lrs,
            self._participants,
            streaming=averages(self.settings.strategy),
            first_round=len(self.rounds),
            bound=UpdateBound.of(self.settings, sites, earlier),
            on_result=functools.partial(self._finish_round, inner),
        )

    def _train(self, strategy: PolyLRStrategy, until: int) -> None:
        remaining = min(until, self.settings.rounds) - len(self.rounds)
        if remaining <= 0:
            return
        self._clock = time.perf_counter()
        strategy.start(
            self.grid,
            pack_weights(self._sent),
            num_rounds=remaining,
            timeout=self.settings.round_deadline or self.settings.answer_deadline,
        )

    def _finish_round(self, inner: Strategy, result: RoundResult) -> None:
        """Keep what a round brought: record, plots, best checkpoint, state."""
        wall, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        received = {r.site: v for r in result.reports if (v := r.received) is not None}
        if self.rounds:
            self._complete_previous(received)
        record = self._record(result, wall)
        self.rounds.append(record)
        self._sent = result.weights
        self.model.save_state(ServerState(result.weights, self.rounds, dump(inner)))
        self._write_report()
        self.observer.round_finished(record)
        self._writing = time.perf_counter() - self._clock

    def _record(self, result: RoundResult, wall: float) -> RoundRecord:
        """Describe a round; its seconds count from the end of the one before, files included."""
        seconds = [report.seconds for report in result.reports]
        training = sum(seconds) if works_in_turn(self.grid) else max(seconds)
        other = training + result.aggregation_seconds + self._writing
        return RoundRecord.of(
            result.reports,
            server_round=result.server_round,
            learning_rate=result.lr,
            started=result.started,
            participants=result.participants,
            failed=result.failed,
            updates=result.updates,
            bytes_down=result.bytes_down,
            bytes_up=result.bytes_up,
            seconds=RoundSeconds(
                round=wall,
                training=training,
                aggregation=result.aggregation_seconds,
                writing=self._writing,
                communication=max(0.0, wall - other),
            ),
        )

    def _complete_previous(self, received: Mapping[str, Validation]) -> None:
        """Complete the previous round: the model it gave is the one that was sent in this one."""
        if received:
            self.rounds[-1] = self.rounds[-1].validated(received)
        self.model.log_round(self._sent, self.rounds[-1])

    def _validate_last(self, strategy: PolyLRStrategy) -> None:
        """Ask for the last round's validation: no later round will bring it."""
        received: dict[str, Validation] = {}
        if self.settings.validates_received:
            weights = pack_weights(self._sent, self.settings.transport_dtype)
            shares = strategy.validation_share([s.site for s in self._sites])
            asked = {site: share for site, share in shares.items() if share != 0}
            classes = len(self.rounds[-1].dice_per_class)
            received = self._questions.validate(weights, asked, classes)
        self._complete_previous(received)

    def _validate_fully(self) -> None:
        """Let each site validate the final model on its own cases; nobody else has them."""
        found = self._questions.validate_fully(pack_weights(self._sent))
        cases = {site.site: site.validation_cases for site in self._sites}
        labels = _labels_of(self.model.trainer)
        found = only_own(found, cases, labels, self.observer.say)
        if any(site.cases for site in found.values()):
            self.model.write_summary(pool_sites(list(found.values())))

    def _personalise(self) -> None:
        """Let each site make its personal model of the final one, which stays there."""
        found = self._questions.personalise(pack_weights(self._sent))
        for site, report in found.items():
            self.observer.say(describe_personal(replace(report, site=site)))
        self._personal |= {site: PersonalRecord.of(report) for site, report in found.items()}
        self._write_report()

    @property
    def _sites(self) -> list[SiteDescription]:
        return list(self._participants.sites.values())

    def _history(self) -> History:
        return History(
            dataset=self._run.dataset,
            configuration=self._run.configuration,
            fold=self._run.fold,
            trainer=self._run.trainer,
            plans_name=self._run.plans_name,
            plans_hash=self.model.plans_hash,
            settings=asdict(self.settings),
            initial_lr=self.model.initial_lr,
            parameter_group_shares=tuple(self.model.schedule.shares),
            parameters=self.model.num_values,
            versions={name: version(name) for name in _PACKAGES},
            sites={
                site.site: SiteSummary(
                    site.training_cases, site.validation_cases, site.versions, site.privacy
                )
                for site in self._sites
            },
            rounds=tuple(self.rounds),
            personal=self._personal,
        )

    def _write_report(self) -> None:
        self._history().write(self._folder / HISTORY_FILE)
        plot_federation(self.rounds, self._folder / "federation.png")


def _labels_of(trainer: FederatedRounds) -> list[str] | None:
    """Return the classes or regions of a full validation; ``None`` if it is the trainer's own."""
    if not validates_segmentations(type(trainer)):
        return None
    return [str(label) for label in compared_labels(trainer.label_manager)]


app = make_server_app()
"""The app as Flower's own runtimes load it."""
