"""The coordinator's side of planning together over a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.messages import PrepareTask, SiteSurvey
from nnunetv2_federated.federation.proposals import PlanProposal
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings
from nnunetv2_federated.flower.deployment.server.serve_once import agreed_sites
from nnunetv2_federated.flower.joint_planning import (
    PlanningSettings,
    check_sites,
    count_cases,
    plan_together,
    prepare_sites,
)
from nnunetv2_federated.nnunet.planning.installed_plans import install_plans, other_plans
from nnunetv2_federated.nnunet.planning.planner import dataset_json_of
from nnunetv2_federated.nnunet.training.packages import defining_packages


def serve_planning(
    folder: Path,
    server: ServerSettings,
    sites: Sequence[str],
    settings: PlanningSettings,
    *,
    wait_for_sites: float,
    answer_deadline: float,
    say: Callable[[str], None],
) -> PrepareTask:
    """Plan together with sites on other machines, and let them prepare.

    Parameters
    ----------
    folder
        Preprocessed dataset of the server, which receives the plans.
    server
        Credentials and address of the server.
    sites
        Names of the sites that are planned for; all are needed.
    settings
        Settings of the planner, the fingerprint and the preprocessing.
    wait_for_sites
        Seconds to wait for a site, at the start and when it was lost.
    answer_deadline
        Seconds to wait for an answer, of a site at work on its images.
    say
        Called with one line about each step.

    Raises
    ------
    RoundError
        If not all sites are there in time.
    SiteError
        If a site fails, is silent, differs from the others or cannot take the plans; names it.
    SettingsError
        If the server has other plans of that name, or the planner refuses.
    """
    proposal = PlanProposal(
        dataset=folder.name,
        planner=asdict(settings.plan),
        configurations=list(settings.configurations) if settings.preprocess else [],
        min_cases=settings.min_cases,
        verify_dataset_integrity=settings.verify_dataset_integrity,
        replace_plans=settings.replace_plans,
        packages=defining_packages({"configurations": {}}, "nnUNetTrainer"),
    )
    with agreed_sites(
        folder / "planning",
        server,
        sites,
        kind="survey",
        proposal=proposal.to_json(),
        read=SiteSurvey.from_json,
        wait_for_sites=wait_for_sites,
        say=say,
    ) as (grid, surveys):
        task = plan_together(grid, surveys, settings, say, answer_deadline)
        if problem := other_plans(folder, task):
            raise SettingsError(f"the server {problem}")
        check_sites(grid, task, surveys, answer_deadline)
        prepare_sites(grid, task, surveys, say, answer_deadline)
        install_plans(folder, task, dataset_json_of(task.declared, count_cases(surveys)))
    return task
