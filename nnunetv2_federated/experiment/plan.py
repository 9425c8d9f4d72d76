"""Plan once for sites that show no image, on this machine or over a network."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_federated.experiment.choices import PlanChoices
from nnunetv2_federated.experiment.naming_cases import naming_cases
from nnunetv2_federated.experiment.resolve import networked, server_settings, sites_with_keys
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.messages import PrepareTask
from nnunetv2_federated.flower.client_app import make_client_app
from nnunetv2_federated.flower.deployment.server.serve_planning import serve_planning
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.joint_planning import (
    PlanningSettings,
    check_sites,
    plan_together,
    prepare_sites,
    survey_sites,
)
from nnunetv2_federated.nnunet.data.dataset import check_environment, find_name
from nnunetv2_federated.nnunet.planning.planner import PlanSettings, find_planner
from nnunetv2_federated.nnunet.planning.raw_site import RawSite
from nnunetv2_federated.nnunet.training.result_folder import one_preparation


def plan(choices: PlanChoices, say: Callable[[str], None]) -> PrepareTask:
    """Plan together, and let every site preprocess with the plans.

    Parameters
    ----------
    choices
        Datasets and how to plan for them.
    say
        Receives what happens, one line each.

    Returns
    -------
    PrepareTask
        What the sites were sent, with the plans.

    Raises
    ------
    SettingsError
        If something chosen is not possible, or a dataset of this machine has a fault.
    SiteError
        If a site fails, or differs from the others; names it.
    FederationError
        If the planning over a network was stopped.
    """
    settings = planning_settings(choices)
    find_planner(settings.plan.planner)
    if networked(choices):
        return _plan_over_network(choices, settings, say)
    processes = _processes(choices)
    sites = [
        RawSite.open(
            name,
            fingerprint_processes=choices.npfp or RawSite.fingerprint_processes,
            preprocessing_processes=processes,
        )
        for name in choices.datasets
    ]
    if len({site.name for site in sites}) < len(sites):
        raise SettingsError(f"-d {' '.join(choices.datasets)}: a dataset is named twice.")
    app = make_client_app(find_raw=lambda context: sites[int(context.node_config["partition-id"])])
    grid = InProcessGrid(app, len(sites), {})
    with contextlib.ExitStack() as ours:
        for site in sites:
            ours.enter_context(one_preparation(site.preprocessed))
        with naming_cases(sites):
            surveys = survey_sites(grid, list(grid.get_node_ids()))
            task = plan_together(grid, surveys, settings, say)
            check_sites(grid, task, surveys)
        prepare_sites(grid, task, surveys, say)
    return task


def planning_settings(choices: PlanChoices) -> PlanningSettings:
    """Return how to plan.

    Raises
    ------
    SettingsError
        If ``min_cases`` is chosen for full fingerprints.
    """
    binned = choices.fingerprint == "binned"
    if "min_cases" in choices.chosen and not binned:
        raise SettingsError("--min-cases: is for --fingerprint binned only.")
    return PlanningSettings(
        plan=PlanSettings(
            planner=choices.planner,
            gpu_memory_target=choices.gpu_memory_target,
            preprocessor=choices.preprocessor_name,
            overwrite_target_spacing=choices.overwrite_target_spacing,
            overwrite_plans_name=choices.overwrite_plans_name,
        ),
        configurations=choices.configurations,
        min_cases=choices.min_cases if binned else None,
        verify_dataset_integrity=choices.verify_dataset_integrity,
        replace_plans=choices.replace_plans,
        preprocess=not choices.no_pp,
    )


def server_dataset(named: Sequence[str]) -> str:
    """Return the dataset that gets the plans; it need not exist, only have a name."""
    if len(named) > 1:
        raise SettingsError(f"-d {' '.join(named)} with --server: name the server's one dataset.")
    name = find_name(named[0]) or named[0]
    if not re.fullmatch(r"Dataset\d{3}_\w+", name):
        raise SettingsError(
            f"-d {name}: the server has no dataset of this id; give a whole name, as in "
            "Dataset501_Name."
        )
    return name


def _plan_over_network(
    choices: PlanChoices, settings: PlanningSettings, say: Callable[[str], None]
) -> PrepareTask:
    """Plan with sites on other machines; their processes and datasets are their own affair."""
    for name in ("npfp", "np"):
        if name in choices.chosen:
            raise SettingsError(f"-{name} with --server: each site says it for itself (-np).")
    check_environment(nnUNet_preprocessed)
    folder = Path(nnUNet_preprocessed.require()) / server_dataset(choices.datasets)
    try:
        with one_preparation(folder):
            return serve_planning(
                folder,
                server_settings(choices),
                sites_with_keys(choices),
                settings,
                wait_for_sites=choices.wait_for_sites,
                answer_deadline=choices.answer_deadline,
                say=say,
            )
    except KeyboardInterrupt as stop:
        raise FederationError("stopped; the same command begins again") from stop


def _processes(choices: PlanChoices) -> dict[str, int]:
    """Return the number of processes for preprocessing, by configuration."""
    numbers, configurations = choices.np, choices.configurations
    if numbers is None:
        return {}
    if len(numbers) == 1:
        numbers = numbers * len(configurations)
    if len(numbers) != len(configurations):
        raise SettingsError(
            f"-np {' '.join(map(str, numbers))}: give one number, or one for each of "
            f"-c {' '.join(configurations)}, at least 1."
        )
    return dict(zip(configurations, numbers, strict=True))
