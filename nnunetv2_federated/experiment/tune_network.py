"""Train the trials of a tuning with sites on other machines, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nnunetv2_federated.experiment.line_observer import LineObserver
from nnunetv2_federated.experiment.train_trial import train_at_sites
from nnunetv2_federated.experiment.tune_pieces import Piece
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_trials import TrialJob, TrialTrainings
from nnunetv2_federated.federation.errors import FederationError, SiteError
from nnunetv2_federated.federation.run import RUN_FILE, Run
from nnunetv2_federated.federation.study import StudyEnd, StudyReceipt, StudyTerms
from nnunetv2_federated.flower.asking import ask
from nnunetv2_federated.flower.deployment.server.network_grid import NetworkGrid
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, federation_grid
from nnunetv2_federated.flower.enrolment import LOOK_SECONDS
from nnunetv2_federated.flower.records import pack_content
from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.training.result_folder import federation_folder

Say = Callable[[str], None]
_TELL_SECONDS = 60.0
"""How long to wait for a site to have deleted what it does not need."""


class NetworkTrials(TrialTrainings):
    """Trains trials with sites on other machines, which stay connected in between.

    Parameters
    ----------
    plan, folder, say, say_round
        As of :class:`.TrialTrainings`.
    terms
        What sites approve of the study.
    server
        Credentials of the server.
    grid
        Reaches the sites.
    """

    def __init__(
        self,
        plan: TuningPlan,
        folder: Path,
        say: Say,
        say_round: Say,
        *,
        terms: StudyTerms,
        server: ServerSettings,
        grid: NetworkGrid,
    ) -> None:
        super().__init__(plan, folder, 1, say, say_round)
        self._terms = terms
        self._server = server
        self._grid = grid
        self._sites = plan.base.remote_sites

    def discard(self, keep: set[int]) -> None:
        """Delete the weights of all trials but some, and at the sites what continues them."""
        super().discard(keep)
        self._end(self.begun() - keep, finished=False)

    def finish(self) -> None:
        """Tell the sites that no trial comes any more; wait for them a while."""
        end = time.monotonic() + _TELL_SECONDS
        while time.monotonic() < end and self._absent():
            time.sleep(LOOK_SECONDS)
        self._end(self.begun(), finished=True)
        for site in sorted(self._absent()):
            self._say(
                f"{site} is not connected and keeps the states of its trials; its engineer may "
                f"delete nnUNet_results/studies/{self._terms.study_id}"
            )

    def _absent(self) -> set[str]:
        return set(self._sites) - set(self._grid.site_names().values())

    def _end(self, trials: set[int], *, finished: bool) -> None:
        """Tell the sites that are connected; each time of all that have ended."""
        end = StudyEnd(self._terms.study_id, sorted(trials), finished)
        names = {n: s for n, s in self._grid.site_names().items() if s in self._sites}
        contents = {node: pack_content(end.to_json()) for node in names}
        read = StudyReceipt.from_json
        for node, answer in ask(self._grid, "query.ended", contents, read, _TELL_SECONDS):
            if isinstance(answer, SiteError):
                self._say(f"{names[node]} keeps the states of trials that ended: {answer}")

    def _run(self, piece: Piece) -> Run:
        number = piece.trial.number
        return replace(
            super()._run(piece),
            run_id=self._terms.run_id(number),
            study=self._terms,
            trial=number,
        )

    def _train_all(self, jobs: Sequence[TrialJob]) -> None:
        for job in jobs:
            job.begins()
            try:
                self._train(job)
            except FederationError as error:
                if not job.excuses(str(error)):
                    raise
            else:
                job.ended()

    def _train(self, job: TrialJob) -> None:
        with environment(**job.environment):
            train_at_sites(
                job.run,
                self._folder / job.name,
                job.until,
                self._plan.score_iterations,
                server=self._server,
                grid=self._grid,
                resume=(federation_folder(job.run) / RUN_FILE).is_file(),
                observer=LineObserver(self._say, job.round_done),
            )


@contextmanager
def sites_of_study(
    plan: TuningPlan, folder: Path, server: ServerSettings, say: Say
) -> Iterator[NetworkGrid]:
    """Start one SuperLink for all trials of a study, and stop it at the end.

    Parameters
    ----------
    plan
        What is tuned.
    folder
        Folder of the study.
    server
        Address and credentials of the server.
    say
        Receives what happens, one line each.

    Raises
    ------
    FederationError
        If the SuperLink cannot be started, or the study is stopped.
    """
    again = "the same command goes on after the last finished round"
    link = folder / "superlink"
    with federation_grid(plan.base, link, server, LineObserver(say), again=again) as grid:
        yield grid
