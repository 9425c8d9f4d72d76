"""The server's side of planning together: survey, fingerprint, one plan, preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

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


def plan_and_prepare(
    grid: Grid, nodes: Sequence[int], settings: PlanningSettings, say: Say
) -> dict[str, Any]:
    """Plan once for all sites, and let each preprocess with that plan.

    Nothing is changed at any site before all of them agreed, were fingerprinted, and said that they
    can take the plan.

    Parameters
    ----------
    grid
        Reaches the sites.
    nodes
        Their node ids.
    settings
        How to plan.
    say
        Told one line about each step of each site.

    Returns
    -------
    dict
        The federation's plans, without ``dataset_name``.

    Raises
    ------
    SiteError
        If a site fails, differs from the others or cannot take the plan; names the site.
    SettingsError
        If the planner is unknown or none of the configurations is planned.
    """
    ask = _Questions(grid, {node: f"node {node}" for node in nodes})
    surveys = ask.all("survey", SiteSurvey.from_json)
    ask.names = {node: survey.site for node, survey in surveys.items()}
    declared = check_agreement(list(surveys.values()))
    cases = sum(survey.cases for survey in surveys.values())
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
    fingerprints = ask.all("fingerprint", SiteFingerprint.from_json, task.to_json())
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
    ask.all("prepare", PrepareReport.from_json, prepare.to_json())
    _prepare(ask, replace(prepare, check_only=False), surveys, say)
    return plans


def _prepare(
    ask: _Questions, task: PrepareTask, surveys: Mapping[int, SiteSurvey], say: Say
) -> None:
    reports = ask.all("prepare", PrepareReport.from_json, task.to_json())
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


@dataclass
class _Questions:
    """Ask all sites the same, and name the site that fails."""

    grid: Grid
    names: dict[int, str]

    def all(
        self, query: str, read: Callable[[str], Answer], payload: str | None = None
    ) -> dict[int, Answer]:
        messages = []
        for node in self.names:
            content = (
                RecordDict() if payload is None else RecordDict({CONFIG: pack_payload(payload)})
            )
            messages.append(Message(content, node, f"query.{query}"))
        answers = {}
        for answer in self.grid.send_and_receive(messages, timeout=PHASE_SECONDS):
            node = answer.metadata.src_node_id
            if answer.has_error():
                raise SiteError(answer.error.reason)
            try:
                answers[node] = read(unpack_payload(answer.content))
            except SiteError as error:
                raise SiteError(f"site {self.names[node]}: {error}") from error
        silent = [name for node, name in self.names.items() if node not in answers]
        if silent:
            raise SiteError(f"no answer to {query} from site {', '.join(silent)}")
        return dict(sorted(answers.items()))
