"""``nnUNetv2_plan_and_preprocess_federated``: one plan for sites that show no image."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.options import parse, run_command
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.cli.train_flags import add_network_flags
from nnunetv2_federated.experiment.options import Options, pick
from nnunetv2_federated.experiment.resolve import networked, server_settings, sites_with_keys
from nnunetv2_federated.federation.errors import FederationError, SettingsError, SiteError
from nnunetv2_federated.federation.messages import PrepareTask
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.client_app import make_client_app
from nnunetv2_federated.flower.deployment.server.serve import serve_planning
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

_MOST_NOTES = 5


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; flags of nnUNetv2_plan_and_preprocess keep their names."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plan_and_preprocess_federated",
        description="Plan once for several datasets, each a site, from fingerprints that give no "
        "patient away, and preprocess each with that plan. Train then with "
        "nnUNetv2_train_federated --site-datasets.",
    )
    add = parser.add_argument
    add("-d", dest="datasets", nargs="+", required=True, metavar="DATASET", help="ids or names")
    add("-c", dest="configurations", nargs="+", help="to preprocess (2d 3d_fullres 3d_lowres)")
    add("-pl", dest="planner", help="experiment planner (ExperimentPlanner)")
    add("-gpu_memory_target", type=float, metavar="GB", help="as of nnU-Net")
    add("-preprocessor_name", metavar="NAME", help="as of nnU-Net (DefaultPreprocessor)")
    add("-overwrite_target_spacing", nargs=3, type=float, metavar="MM", help="as of nnU-Net")
    add("-overwrite_plans_name", metavar="NAME", help="name of the plans (the planner's)")
    add("-npfp", type=int, metavar="N", help="processes for fingerprints (8)")
    add("-np", type=int, nargs="+", metavar="N", help="for preprocessing, one or one for each -c")
    add("--verify_dataset_integrity", action="store_true", default=None, help="as of nnU-Net")
    add("--no_pp", action="store_true", default=None, help="plan, but do not preprocess")
    add(
        "--fingerprint",
        choices=("full", "binned"),
        help="binned: merge bins until each holds --min-cases cases (default full)",
    )
    add("--min-cases", type=int, metavar="N", help="of a bin of a binned fingerprint (5)")
    add(
        "--replace-plans",
        action="store_true",
        default=None,
        help="replace plans of the same name that differ",
    )
    add_network_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _plan(parse(parser, argv)))


def _plan(options: Options) -> None:
    settings = _settings(options)
    find_planner(settings.plan.planner)
    if networked(options):
        _plan_over_network(options, settings)
        return
    processes = _processes(options, settings.configurations)
    npfp = options.get("npfp", RawSite.fingerprint_processes)
    if npfp < 1:
        raise SettingsError(f"-npfp {npfp}: must be at least 1.")
    sites = [
        RawSite.open(name, fingerprint_processes=npfp, preprocessing_processes=processes)
        for name in options["datasets"]
    ]
    if len({site.name for site in sites}) < len(sites):
        raise SettingsError(f"-d {' '.join(options['datasets'])}: a dataset is named twice.")
    app = make_client_app(find_raw=lambda context: sites[int(context.node_config["partition-id"])])
    grid = InProcessGrid(app, len(sites), {})
    with contextlib.ExitStack() as ours:
        for site in sites:
            ours.enter_context(one_preparation(site.preprocessed))
        with _telling_more(sites):
            surveys = survey_sites(grid, list(grid.get_node_ids()))
            task = plan_together(grid, surveys, settings, say)
            check_sites(grid, task, surveys)
        prepare_sites(grid, task, surveys, say)
    _say_next(f"--site-datasets {' '.join(options['datasets'])}", task, settings)


@contextlib.contextmanager
def _telling_more(sites: Sequence[RawSite]) -> Iterator[None]:
    """Name cases and files, which are all this user's own, and take what is wrong for bad input."""
    log = logging.getLogger("nnunetv2_federated")
    unheard = logging.NullHandler()  # the error has what a site would log
    log.addHandler(unheard)
    try:
        yield
    except SiteError as error:
        notes = [note for site in sites for note in site.notes]
        more = f" ({len(notes) - _MOST_NOTES} more)" if len(notes) > _MOST_NOTES else ""
        told = f" Here: {'; '.join(notes[:_MOST_NOTES])}{more}." if notes else ""
        raise SettingsError(f"{error}{told}") from error
    finally:
        log.removeHandler(unheard)


def _plan_over_network(options: Options, settings: PlanningSettings) -> None:
    """Plan with sites on other machines; their processes and datasets are their own affair."""
    for name in ("npfp", "np"):
        if name in options:
            raise SettingsError(f"-{name} with --server: each site says it for itself (-np).")
    waits = FederationSettings(**pick(options, ("wait_for_sites", "answer_deadline")))
    check_environment(nnUNet_preprocessed)
    name = _server_dataset(options["datasets"])
    folder = Path(nnUNet_preprocessed.require()) / name
    try:
        with one_preparation(folder), stopping_as_interrupt():
            task = serve_planning(
                folder,
                server_settings(options),
                sites_with_keys(options),
                settings,
                wait_for_sites=waits.wait_for_sites,
                answer_deadline=waits.answer_deadline,
                say=say,
            )
    except KeyboardInterrupt as stop:
        raise FederationError("stopped; the same command begins again") from stop
    _say_next(f"--server {options['server']} {name}", task, settings)


def _server_dataset(named: Sequence[str]) -> str:
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


def _say_next(sites: str, task: PrepareTask, settings: PlanningSettings) -> None:
    name = task.plans["plans_name"]
    print(
        f"now train with: nnUNetv2_train_federated {sites} {settings.configurations[0]} 0"
        + (f" -p {name}" if name != "nnUNetPlans" else "")
    )


def _settings(options: Options) -> PlanningSettings:
    binned = options.get("fingerprint") == "binned"
    if "min_cases" in options and not binned:
        raise SettingsError("--min-cases: is for --fingerprint binned only.")
    min_cases = options.get("min_cases", 5) if binned else None
    if min_cases is not None and min_cases < 1:
        raise SettingsError(f"--min-cases {min_cases}: must be at least 1.")
    spacing = options.get("overwrite_target_spacing")
    memory = options.get("gpu_memory_target")
    if memory is not None and not memory > 0:
        raise SettingsError(f"-gpu_memory_target {memory}: must be above 0 (GB).")
    if spacing is not None and not all(s > 0 for s in spacing):
        raise SettingsError(f"-overwrite_target_spacing {spacing}: must be above 0 (mm).")
    return PlanningSettings(
        plan=PlanSettings(
            planner=options.get("planner", PlanSettings.planner),
            gpu_memory_target=memory,
            preprocessor=options.get("preprocessor_name", PlanSettings.preprocessor),
            overwrite_target_spacing=tuple(spacing) if spacing is not None else None,
            overwrite_plans_name=options.get("overwrite_plans_name"),
        ),
        configurations=tuple(options.get("configurations", PlanningSettings.configurations)),
        min_cases=min_cases,
        verify_dataset_integrity="verify_dataset_integrity" in options,
        replace_plans="replace_plans" in options,
        preprocess="no_pp" not in options,
    )


def _processes(options: Options, configurations: Sequence[str]) -> dict[str, int]:
    numbers = options.get("np")
    if numbers is None:
        return {}
    if len(numbers) == 1:
        numbers = numbers * len(configurations)
    if len(numbers) != len(configurations) or min(numbers) < 1:
        raise SettingsError(
            f"-np {' '.join(map(str, numbers))}: give one number, or one for each of "
            f"-c {' '.join(configurations)}, at least 1."
        )
    return dict(zip(configurations, numbers, strict=True))


if __name__ == "__main__":
    main()
