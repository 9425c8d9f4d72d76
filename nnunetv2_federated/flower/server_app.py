"""A whole federation, from the first question to the result folder."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import TypeVar

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.history import (
    Record,
    client_side,
    server_side,
    write_history,
)
from nnunetv2_federated.federation.messages import (
    FullValidation,
    SiteDescription,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run, read_run
from nnunetv2_federated.federation.update_bound import UpdateBound, accepted_norms
from nnunetv2_federated.flower.asking import ask
from nnunetv2_federated.flower.participants import Attendance, Requirements
from nnunetv2_federated.flower.records import (
    ARRAYS,
    CONFIG,
    pack_payload,
    pack_weights,
    run_folder,
    unpack_weights,
)
from nnunetv2_federated.flower.strategies import averages, build_strategy
from nnunetv2_federated.flower.strategy import Outcome, PolyLRStrategy
from nnunetv2_federated.flower.strategy_state import dump, restore
from nnunetv2_federated.nnunet.summary import pool_sites
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds
from nnunetv2_federated.report.federation_png import plot_federation

Answer = TypeVar("Answer", Validation, FullValidation)


def make_server_app(
    observer: Observer | None = None, trainer: FederatedRounds | None = None
) -> ServerApp:
    """Build the app.

    Parameters
    ----------
    observer
        Told what happens.
    trainer
        Holds the global model; ``None`` to build one from the run's settings.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        folder = run_folder(context)
        run = read_run(folder)
        model = GlobalModel(run, trainer)
        try:
            Server(grid, run, model, observer or Observer()).run()
        finally:
            if trainer is None:  # whoever gave one closes it, after the validation
                model.close()

    return app


class Server:
    """One federation: describe, rounds, result."""

    def __init__(self, grid: Grid, run: Run, model: GlobalModel, observer: Observer) -> None:
        self.grid = grid
        self.settings = run.settings
        self.model = model
        self.observer = observer
        self.rounds: list[Record] = []
        self._sent: Vector = model.vector
        self._run = run
        self._folder = model.folder
        self._clock = time.perf_counter()
        self._writing = 0.0
        same = Requirements(
            model.network_hash,
            model.plans_hash,
            model.declared,
            model.packages,
            model.validated_classes,
        )
        self._attendance = Attendance(grid, run, same, observer)

    def run(self) -> None:
        """Train all rounds that are still to do, and write the result."""
        state = self.model.load_state()
        if state is not None:
            self._sent, self.rounds = state["weights"], state["rounds"]
        elif self._run.pretrained_weights:
            self.model.load_pretrained(self._run.pretrained_weights)
            self._sent = self.model.vector
        self.observer.run_started(len(self.rounds), self.settings.rounds)
        for line in self.model.notes:
            self.observer.say(line)
        for place in self.model.open_trackers(self._header()):
            self.observer.say(f"tracked in {place}")
        self._attendance.gather()
        strategy = PolyLRStrategy(
            build_strategy(self.settings.strategy, self.settings.strategy_options),
            replace(self.settings, val_iterations=self.model.val_iterations),
            self.model.schedule.lrs,
            self._attendance,
            streaming=averages(self.settings.strategy),
            first_round=len(self.rounds),
            bound=UpdateBound.of(
                self.settings, len(self._attendance.names), accepted_norms(self.rounds)
            ),
        )
        if state is not None:
            restore(strategy.inner, state["strategy"])
        self._train(strategy)
        self.model.save_final(self._sent)  # before anybody is asked, who may be silent
        self._validate_last(strategy)
        self.model.finish(self._sent)
        self._write_report()
        if self._run.remote_sites:
            self._validate_fully()

    def _train(self, strategy: PolyLRStrategy) -> None:
        remaining = self.settings.rounds - len(self.rounds)
        if remaining == 0:
            return

        def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            wall, self._clock = time.perf_counter() - self._clock, time.perf_counter()
            if server_round > 0 and strategy.outcome is not None:
                weights = unpack_weights(RecordDict({ARRAYS: arrays}))
                record = self._record(strategy.outcome, wall)
                self._finish_round(strategy, strategy.outcome, record, weights)
                self._writing = time.perf_counter() - self._clock
            return None

        strategy.start(
            self.grid,
            pack_weights(self._sent),
            num_rounds=remaining,
            timeout=self.settings.round_deadline or self.settings.answer_deadline,
            evaluate_fn=after_round,
        )

    def _record(self, outcome: Outcome, wall: float) -> Record:
        """Describe a round; its seconds count from the end of the one before, files included."""
        seconds = [report.seconds for report in outcome.reports]
        sequential = getattr(self.grid, "sequential", False)
        training = sum(seconds) if sequential else max(seconds)
        other = training + outcome.aggregation_seconds + self._writing
        return {
            "round": outcome.server_round,
            "lr": outcome.lr,
            "started": outcome.started,
            "participants": outcome.participants,
            "failed": outcome.failed,
            "updates": outcome.updates,
            **client_side(outcome.reports),
            "global_model": None,
            "bytes_down": outcome.bytes_down,
            "bytes_up": outcome.bytes_up,
            "seconds": {
                "round": wall,
                "training": training,
                "aggregation": outcome.aggregation_seconds,
                "writing": self._writing,
                "communication": max(0.0, wall - other),
            },
        }

    def _finish_round(
        self, strategy: PolyLRStrategy, outcome: Outcome, record: Record, weights: Vector
    ) -> None:
        """Keep what the round brought: record, plots, best checkpoint, state."""
        received = {r.site: v for r in outcome.reports if (v := r.received) is not None}
        if self.rounds:
            self._complete_previous(received)
        self.rounds.append(record)
        self._sent = weights
        self.model.save_state(weights, self.rounds, dump(strategy.inner))
        self._write_report()
        self.observer.round_finished(record)

    def _complete_previous(self, received: Mapping[str, Validation]) -> None:
        """Judge the previous round: its global model is what was sent in this one."""
        previous = self.rounds[-1]
        if received:
            previous["global_model"] = server_side(received)
        self.model.log_round(self._sent, previous, previous["global_model"] or previous)

    def _validate_last(self, strategy: PolyLRStrategy) -> None:
        """Ask for the last round's validation: no later round will bring it."""
        received: dict[str, Validation] = {}
        if self.settings.global_validation:
            weights = pack_weights(self._sent, self.settings.transport_dtype)
            questions = {}
            for site, share in strategy.validation_share([s.site for s in self._sites]).items():
                if share != 0:
                    task = TrainTask(self.settings.rounds, 0.0, 0, share, run_id=self._run.run_id)
                    payload = pack_payload(task.to_json())
                    questions[site] = RecordDict({ARRAYS: weights, CONFIG: payload})
            classes = len(self.rounds[-1]["dice_per_class"])
            read = functools.partial(_read_validation, classes)
            received = self._ask(questions, MessageType.EVALUATE, read)
        self._complete_previous(received)

    def _validate_fully(self) -> None:
        """Let each site validate the final model on its own cases; nobody else has them."""
        weights = pack_weights(self._sent)
        task = TrainTask(self.settings.rounds + 1, 0.0, 0, 0, run_id=self._run.run_id)
        payload = pack_payload(task.to_json())
        questions = {s.site: RecordDict({ARRAYS: weights, CONFIG: payload}) for s in self._sites}
        self.observer.say(f"validation at {', '.join(questions)}")
        found = self._ask(questions, f"{MessageType.EVALUATE}.fully", _read_full_validation)
        if any(site.cases for site in found.values()):
            self.model.write_summary(pool_sites(list(found.values())))

    def _ask(
        self, questions: Mapping[str, RecordDict], kind: str, read: Callable[[str], Answer]
    ) -> dict[str, Answer]:
        """Ask sites at the same time; who does not answer is left out and named."""
        nodes = self._attendance.present(questions, 0)
        names = {node: site for site, node in nodes.items()}
        messages = [Message(questions[site], node, kind) for node, site in names.items()]
        failed = dict.fromkeys(questions.keys() - nodes.keys(), "not connected")
        found: dict[str, Answer] = {}
        for node, answer in ask(self.grid, messages, read, self.settings.answer_deadline):
            if isinstance(answer, SiteError):
                failed[names[node]] = str(answer)
            else:
                found[names[node]] = answer
        for site, reason in sorted(failed.items()):
            self.observer.say(f"{site} did not validate: {reason}")
        return {site: found[site] for site in questions if site in found}

    @property
    def _sites(self) -> list[SiteDescription]:
        return list(self._attendance.sites.values())

    def _header(self) -> Record:
        return {
            "dataset": self._run.dataset,
            "configuration": self._run.configuration,
            "fold": self._run.fold,
            "trainer": self._run.trainer,
            "plans": self._run.plans_name,
            "plans_hash": self.model.plans_hash,
            "settings": asdict(self.settings),
            "initial_lr": self.model.initial_lr,
            "parameter_group_shares": list(self.model.schedule.shares),
            "parameters": self.model.num_values,
            "versions": {
                name: version(name) for name in ("nnunetv2-federated", "nnunetv2", "flwr", "torch")
            },
        }

    def _write_report(self) -> None:
        sites = {
            site.site: {
                "training_cases": site.training_cases,
                "validation_cases": site.validation_cases,
                "versions": site.versions,
            }
            for site in self._sites
        }
        path = self._folder / "federation.json"
        write_history(path, {**self._header(), "sites": sites}, self.rounds)
        plot_federation(self.rounds, self._folder / "federation.png")


def _read_validation(classes: int, payload: str) -> Validation:
    validation = Validation.from_json(payload)
    if len(validation.tp) != classes:
        raise SiteError(f"validated {len(validation.tp)} classes instead of {classes}")
    server_side({"": validation})  # whatever cannot be summed up is refused here
    return validation


def _read_full_validation(payload: str) -> FullValidation:
    validation = FullValidation.from_json(payload)
    if validation.cases:
        pool_sites([validation])  # as above
    return validation


app = make_server_app()
"""The app as Flower's own runtimes load it."""
