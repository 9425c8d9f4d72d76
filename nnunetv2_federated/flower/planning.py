"""The server's side of planning together: survey, fingerprint, one plan, preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.fingerprint import (
    SiteFingerprint,
    pool_sites,
    samples_per_case,
)
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PrepareReport,
    PrepareTask,
    SiteSurvey,
)
from nnunetv2_federated.federation.planning import check_agreement, hash_plans
from nnunetv2_federated.flower.records import CONFIG, PHASE_SECONDS, pack_payload, unpack_payload
from nnunetv2_federated.training.planning import PlanSettings, plan, site_fingerprint_file

Say = Callable[[str], None]
Answer = TypeVar("Answer")
Surveys = Mapping[int, SiteSurvey]
"""What the sites declare, by node."""


@dataclass(frozen=True)
class PlanningSettings:
    """How a federation plans and prepares."""

    plan: PlanSettings
    configurations: tuple[str, ...] = ("2d", "3d_fullres", "3d_lowres")
    """What to preprocess; what the plans do not have is skipped, as by nnU-Net."""
    min_cases: int | None = None
    """``None``: the finest bins; else every bin and pair holds at least so many cases."""
    verify_dataset_integrity: bool = False
    replace_plans: bool = False
    preprocess: bool = True


def survey_sites(grid: Grid, nodes: Sequence[int]) -> Surveys:
    """Ask what the dataset of each site declares; no image is read.

    Raises
    ------
    SiteError
        If a site fails; names it.
    """
    return _ask(grid, {node: f"node {node}" for node in nodes}, "survey", SiteSurvey.from_json)


def plan_together(
    grid: Grid, surveys: Surveys, settings: PlanningSettings, say: Say
) -> PrepareTask:
    """Fingerprint all sites and plan once for them; nothing is changed anywhere.

    Parameters
    ----------
    grid
        Reaches the sites.
    surveys
        What each site declares, by node.
    settings
        How to plan.
    say
        Told one line about each step of each site.

    Returns
    -------
    PrepareTask
        The federation's plans, for :func:`prepare_sites`.

    Raises
    ------
    SiteError
        If a site fails or differs from the others; names the site.
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
    task = FingerprintTask(
        samples_per_case(cases), settings.min_cases, settings.verify_dataset_integrity
    )
    fingerprints = _ask(
        grid, _names(surveys), "fingerprint", SiteFingerprint.from_json, task.to_json()
    )
    for node, fingerprint in fingerprints.items():
        _check_fingerprint(fingerprint, surveys[node])
    pooled = pool_sites(list(fingerprints.values()))
    plans = plan(declared, pooled, settings.plan)
    configurations = [
        c
        for c in settings.configurations
        if "data_identifier" in plans["configurations"].get(c, {})
    ]
    if not configurations:
        raise SettingsError(
            f"-c {' '.join(settings.configurations)}: the plans have "
            f"{', '.join(plans['configurations'])}."
        )
    prepare = PrepareTask(
        plans=plans,
        sha256=hash_plans(plans),
        fingerprint=site_fingerprint_file(pooled),
        declared=declared,
        configurations=configurations if settings.preprocess else [],
        replace_plans=settings.replace_plans,
        check_only=True,
    )
    say(f"{plans['plans_name']} for {cases} cases, SHA-256 {prepare.sha256[:12]}")
    return prepare


def prepare_sites(grid: Grid, task: PrepareTask, surveys: Surveys, say: Say) -> None:
    """Let each site preprocess with the plans, once all of them said that they can take them.

    Raises
    ------
    SiteError
        If a site cannot take the plans (nothing is changed anywhere then), or fails; names it.
    """
    names = _names(surveys)
    _ask(grid, names, "prepare", PrepareReport.from_json, task.to_json())
    task = replace(task, check_only=False)
    reports = _ask(grid, names, "prepare", PrepareReport.from_json, task.to_json())
    for node, report in reports.items():
        site = surveys[node].site
        if report.sha256 != task.sha256:
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
    payload: str | None = None,
) -> dict[int, Answer]:
    """Ask all sites the same, and name the site that fails."""
    content = RecordDict() if payload is None else RecordDict({CONFIG: pack_payload(payload)})
    messages = [Message(RecordDict(dict(content)), node, f"query.{query}") for node in names]
    answers = {}
    for answer in grid.send_and_receive(messages, timeout=PHASE_SECONDS):
        node = answer.metadata.src_node_id
        if answer.has_error():
            raise SiteError(answer.error.reason)
        try:
            answers[node] = read(unpack_payload(answer.content))
        except SiteError as error:
            raise SiteError(f"site {names[node]}: {error}") from error
    silent = [name for node, name in names.items() if node not in answers]
    if silent:
        raise SiteError(f"no answer to {query} from site {', '.join(silent)}")
    return dict(sorted(answers.items()))
