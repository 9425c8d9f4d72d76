"""The server's side of planning together: survey, fingerprint, one plan, preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from flwr.app import RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.agreement import check_agreement, hash_plans
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.fingerprint import (
    SiteFingerprint,
    pool_fingerprints,
    samples_per_case,
)
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PrepareReport,
    PrepareTask,
    SiteSurvey,
)
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.asking import ask_sites
from nnunetv2_federated.flower.records import pack_content, reading
from nnunetv2_federated.nnunet.planning.planner import PlanSettings, plan, site_fingerprint_file

Say = Callable[[str], None]
Answer = TypeVar("Answer")
_LONGEST = FederationSettings.answer_deadline
Surveys = Mapping[int, SiteSurvey]
"""What the sites declare, by node."""


@dataclass(frozen=True)
class PlanningSettings:
    """Settings of a joint planning."""

    plan: PlanSettings
    configurations: tuple[str, ...] = ("2d", "3d_fullres", "3d_lowres")
    """Configurations to preprocess; those that the plans do not have are skipped, as by nnU-Net."""
    min_cases: int | None = None
    """``None``: the finest bins; else every bin and pair holds at least so many cases."""
    verify_dataset_integrity: bool = False
    replace_plans: bool = False
    preprocess: bool = True


def survey_sites(grid: Grid, nodes: Sequence[int], answer_deadline: float = _LONGEST) -> Surveys:
    """Ask each site what its dataset declares; no image is read.

    Raises
    ------
    SiteError
        If a site fails, or does not answer within ``answer_deadline`` seconds; names it.
    """
    names = {node: f"node {node}" for node in nodes}
    return _ask(grid, names, "survey", SiteSurvey.from_json, answer_deadline)


def plan_together(
    grid: Grid,
    surveys: Surveys,
    settings: PlanningSettings,
    say: Say,
    answer_deadline: float = _LONGEST,
) -> PrepareTask:
    """Fingerprint all sites and plan once for them; nothing is changed anywhere.

    Parameters
    ----------
    grid
        Reaches the sites.
    surveys
        What each site declares, by node.
    settings
        Settings of the planner, the fingerprint and the preprocessing.
    say
        Called with one line about each step of each site.
    answer_deadline
        Seconds to wait for a site's fingerprint.

    Returns
    -------
    PrepareTask
        The federation's plans, for :func:`check_sites` and :func:`prepare_sites`.

    Raises
    ------
    SiteError
        If a site fails, is silent or differs from the others; names the site.
    SettingsError
        If the planner is unknown or none of the configurations is planned.
    """
    declared = check_agreement(list(surveys.values()))
    cases = count_cases(surveys)
    for survey in surveys.values():
        say(f"{survey.site}: {survey.cases} training cases")
        if survey.cases < (settings.min_cases or 5):
            say(
                f"warning: {survey.site} has {survey.cases} training cases: its fingerprint nearly "
                "describes single patients. Leave it out of planning if that may not be told."
            )
    say(f"fingerprint: each site reads all its images and masks, {cases} cases in all")
    task = FingerprintTask(
        samples_per_case(cases), settings.min_cases, settings.verify_dataset_integrity
    )
    fingerprints = _ask(
        grid,
        _names(surveys),
        "fingerprint",
        SiteFingerprint.from_json,
        answer_deadline,
        payload=task.to_json(),
    )
    for node, fingerprint in fingerprints.items():
        with reading(f"site {surveys[node].site}: its answer"):
            _check_fingerprint(fingerprint, surveys[node])
            pool_fingerprints([fingerprint])  # what cannot be pooled is refused here
    pooled = pool_fingerprints(list(fingerprints.values()))
    plans = plan(declared, pooled, settings.plan)
    configurations = [c for c in settings.configurations if c in plans["configurations"]]
    if not configurations:
        raise SettingsError(
            f"-c {' '.join(settings.configurations)}: the plans have "
            f"{', '.join(plans['configurations'])}."
        )
    prepare = PrepareTask(
        plans=plans,
        plans_hash=hash_plans(plans),
        fingerprint=site_fingerprint_file(pooled),
        declared=declared,
        configurations=configurations if settings.preprocess else [],
        replace_plans=settings.replace_plans,
        check_only=True,
    )
    say(f"{plans['plans_name']} for {cases} cases, SHA-256 {prepare.plans_hash[:12]}")
    return prepare


def check_sites(
    grid: Grid, task: PrepareTask, surveys: Surveys, answer_deadline: float = _LONGEST
) -> None:
    """Ask each site whether it can take the plans; nothing is changed anywhere.

    Raises
    ------
    SiteError
        If a site cannot, fails, or does not answer within ``answer_deadline`` seconds; names it.
    """
    payload = task.to_json()
    read = PrepareReport.from_json
    _ask(grid, _names(surveys), "prepare", read, answer_deadline, payload=payload)


def prepare_sites(
    grid: Grid,
    task: PrepareTask,
    surveys: Surveys,
    say: Say,
    answer_deadline: float = _LONGEST,
) -> None:
    """Let each site preprocess with the plans, once :func:`check_sites` said that all can.

    Raises
    ------
    SiteError
        If a site fails, or does not answer within ``answer_deadline`` seconds; names it.
    """
    task = replace(task, check_only=False)
    if task.configurations:
        cases = f"{count_cases(surveys)} cases at {len(surveys)} sites"
        say(f"preprocessing {', '.join(task.configurations)}: {cases}")
    payload = task.to_json()
    read = PrepareReport.from_json
    reports = _ask(grid, _names(surveys), "prepare", read, answer_deadline, payload=payload)
    for node, report in reports.items():
        site = surveys[node].site
        if report.plans_hash != task.plans_hash:
            raise SiteError(f"site {site}: its plans have another hash than the federation's")
        for configuration in task.configurations:
            count = report.preprocessed.get(configuration)
            if count != surveys[node].cases:
                raise SiteError(
                    f"site {site}: {count} of {surveys[node].cases} cases of {configuration} are "
                    "preprocessed; the site's log says more."
                )
        done = ", ".join(f"{c} {n} cases" for c, n in report.preprocessed.items())
        say(f"{site}: prepared{': ' + done if done else ''}")


def count_cases(surveys: Surveys) -> int:
    """Training cases of all sites."""
    return sum(survey.cases for survey in surveys.values())


def _check_fingerprint(fingerprint: SiteFingerprint, survey: SiteSurvey) -> None:
    for field, theirs, expected in (
        ("site", fingerprint.site, survey.site),
        ("cases", fingerprint.cases, survey.cases),
        ("channels", len(fingerprint.channels), len(survey.channel_names)),
    ):
        if theirs != expected:
            raise SiteError(
                f"site {survey.site}: {field} of its fingerprint is {theirs}, declared {expected}"
            )


def _names(surveys: Surveys) -> dict[int, str]:
    return {node: survey.site for node, survey in surveys.items()}


def _ask(
    grid: Grid,
    names: Mapping[int, str],
    query: str,
    read: Callable[[str], Answer],
    seconds: float,
    *,
    payload: str | None = None,
) -> dict[int, Answer]:
    content = RecordDict() if payload is None else pack_content(payload)
    return ask_sites(grid, names, query, read, seconds, content=content)
