"""What an engineer is asked to approve, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_federated.federation.agreement import hash_plans
from nnunetv2_federated.federation.choosing import ChoiceProposal
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import EvaluationProposal
from nnunetv2_federated.federation.package_versions import compare_packages
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal
from nnunetv2_federated.federation.queue import describe_queue
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyTerms
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.flower.deployment.site.consent import Agreement
from nnunetv2_federated.nnunet.data.dataset import read_plans


def describe_here(agreement: Agreement, dataset: str) -> list[str]:
    """Say in lines what an approval agrees to, as it looks from this site.

    Parameters
    ----------
    agreement
        Proposal of a training, of planning together or of an evaluation.
    dataset
        Id or name of the site's dataset, whose plans are described if they are those proposed.
    """
    return describe(
        agreement, _plans_here(agreement, dataset), compare_packages(agreement.packages)
    )


def _plans_here(agreement: Agreement, dataset: str) -> dict[str, Any] | None:
    if not isinstance(agreement, Proposal):
        return None
    try:
        plans = read_plans(dataset, agreement.plans_name)
    except SettingsError:
        return None
    return plans if hash_plans(plans) == agreement.plans_hash else None


def describe(
    agreement: Agreement, plans: Mapping[str, Any] | None, differing: Sequence[str]
) -> list[str]:
    """Say in lines what an approval agrees to.

    Parameters
    ----------
    agreement
        Proposal of the coordinator.
    plans
        Plans at this site, if they have the hash that is proposed; ``None`` otherwise.
    differing
        How packages here differ from the coordinator's.
    """
    if isinstance(agreement, Proposal):
        lines = [*_training(agreement), *_plans(agreement, plans)]
    elif isinstance(agreement, EvaluationProposal):
        lines = _evaluation(agreement)
    elif isinstance(agreement, ChoiceProposal):
        lines = _choice(agreement)
    else:
        lines = _planning(agreement)
    lines += [f"package {line}" for line in differing]
    lines.append(f"approval hash: {agreement.approval()}")
    return [clean(line, 1000) for line in lines]


def _training(proposal: Proposal) -> list[str]:
    if proposal.study is not None:
        return _study(proposal, proposal.study)
    number = f"{proposal.count} trainings" if proposal.count > 1 else "training"
    start = (
        f"{number} of {describe_queue(proposal.folds)}, with "
        f"{proposal.trainer}; the coordinator calls the dataset {proposal.dataset}"
    )
    try:
        settings = FederationSettings(**proposal.settings)
    except (SettingsError, TypeError) as error:
        return [start, f"its settings are not valid and will be refused: {error}"]
    return [start, *_settings(settings, proposal.count)]


def _settings(settings: FederationSettings, count: int, *, study: bool = False) -> list[str]:
    """Say how each of some trainings is done, what leaves the site, and what protects it."""
    epochs = (
        "1 local epoch" if settings.local_epochs == 1 else f"{settings.local_epochs} local epochs"
    )
    iterations = settings.iterations_per_epoch or "the trainer's own number of"
    rate = settings.initial_lr or "the trainer's own"
    course = (
        "decays to 0" if settings.lr_schedule == "poly" else "follows the trainer's own schedule"
    )
    end = "" if study else "; at the end the means of the full validation"
    options = ", ".join(f"{key} {value:g}" for key, value in settings.strategy_options.items())
    return [
        f"{'each of ' if count > 1 else ''}{settings.rounds} rounds of {epochs} of "
        f"{iterations} iterations, learning rate {rate}, which {course}, by {settings.strategy}"
        f"{f' ({options})' if options else ''}",
        f"after each round the trained weights leave this site in {settings.transport_dtype}, "
        f"{_told(settings, end)}; field by field in docs/what-leaves-a-site.md",
        _privacy(settings, count, each=study),
        *_personal(settings),
    ]


def _study(proposal: Proposal, study: StudyTerms) -> list[str]:
    """Say what all trials of a study may do here."""
    settings = study.base_settings
    limits = [f"{study.rounds} rounds"]
    limits += [f"{study.hours:g} hours here"] if study.hours is not None else []
    limits += [f"{study.gigabytes:g} GB to and from here"] if study.gigabytes is not None else []
    return [
        f"a study of at most {study.trials} trainings, its trials, of "
        f"{describe_queue(proposal.folds)}, with {proposal.trainer}; the coordinator calls the "
        f"dataset {proposal.dataset}; together at most {', '.join(limits)}",
        "from trial to trial only these settings vary, which this site checks:",
        *(f"- {name} {_varied(values)}" for name, values in study.search.items()),
        "the other settings, and the steps of all rounds together, are those of the first trial:",
        *_settings(settings, study.trials, study=True),
        f"a trial is scored after at most {study.rungs} shares of its rounds; all scores and "
        f"validations together are at most {study.evaluations}, each of which counts as an "
        f"evaluation: this site validates a model on at most {study.score_iterations} iterations, "
        "or all its validation cases, and tells losses and sums of voxel counts over blocks of "
        "them; what is needed to continue trials that ended is deleted here",
    ]


def _varied(values: Any) -> str:  # noqa: ANN401  # checked by StudyTerms
    if isinstance(values, Mapping):
        scale = " by its logarithm" if values["log"] else ""
        return f"from {values['low']:g} to {values['high']:g}{scale}"
    return f"of {', '.join(map(str, values))}"


def _personal(settings: FederationSettings) -> list[str]:
    """Say what happens after the last round, if there are personal models."""
    if not settings.personalises:
        return []
    rate = "the initial learning rate" if settings.personal_lr is None else settings.personal_lr
    told = (
        "it tells only that it is done, as fine-tuning adds no noise"
        if settings.private
        else "with at least "
        f"{settings.personal_min_cases} validation cases it tells their number, the mean Dice, or "
        "the trainer's own metric, before and after, and the share of the fine-tuned weights; with "
        "fewer only that it is done"
    )
    return [
        f"after the last round this site fine-tunes the model for {settings.personal_iterations} "
        f"iterations at {rate}, decaying to 0, and keeps what validates best here as a personal "
        f"model, which never leaves it; {told}"
    ]


def _told(settings: FederationSettings, end: str) -> str:
    """Say what leaves the site beside the weights."""
    if settings.withholds:
        return "and nothing of training losses or of validation cases"
    losses = "losses of validation cases" if settings.private else "with losses"
    return f"{losses} and sums of voxel counts over patches of the validation cases{end}"


def _privacy(settings: FederationSettings, trainings: int, *, each: bool) -> str:
    """Say how the patients are protected in the weights."""
    leak = "weights can leak information about the images they were trained on"
    if not settings.private:
        return f"{leak}; no noise is added"
    cost = "all trainings together cost" if trainings > 1 else "the training costs"
    if each:
        cost = f"each of up to {trainings} trainings, whose costs add up, costs"
    noise = (
        f"so much noise that {cost} each patient at most epsilon {settings.dp_epsilon:g}"
        if settings.dp_epsilon is not None
        else f"noise of {settings.dp_noise:g} times that"
    )
    return (
        f"{leak}: each patient's gradient is shortened to {settings.dp_clip:g}, and this site adds "
        f"{noise} (docs/differential-privacy.md); its ledger counts epsilon over all trainings, "
        "and max_epsilon in site.toml ends it"
    )


def _plans(proposal: Proposal, plans: Mapping[str, Any] | None) -> list[str]:
    named = f"plans {proposal.plans_name}, SHA-256 {proposal.plans_hash}"
    if plans is None:
        return [f"{named}: this site has no such plans (yet)"]
    return [
        f"{named}{f', {name}' if len(proposal.queue) > 1 else ''}: {_network(plans, name)}"
        for name in proposal.queue
    ]


def _network(plans: Mapping[str, Any], name: str) -> str:
    configuration = _resolved(plans, name)
    architecture = configuration.get("architecture", {})
    return (
        f"network {architecture.get('network_class_name')}, patch "
        f"{_times(configuration.get('patch_size', ()))}, batch {configuration.get('batch_size')}, "
        f"spacing {_times(configuration.get('spacing', ()))}, normalisation "
        f"{', '.join(map(str, configuration.get('normalization_schemes', ())))}"
    )


def _resolved(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits; plans of others may be circular."""
    chain = []
    while name in plans["configurations"] and name not in chain:
        chain.append(name)
        name = plans["configurations"][name].get("inherits_from", "")
    merged: dict[str, Any] = {}
    for link in reversed(chain):
        merged |= plans["configurations"][link]
    return merged


def _planning(proposal: PlanProposal) -> list[str]:
    options = ", ".join(f"{k} {v}" for k, v in proposal.planner.items() if v is not None)
    bins = (
        "as fine as they are"
        if proposal.min_cases is None
        else f"merged until each bin holds at least {proposal.min_cases} cases"
    )
    return [
        f"planning together; the coordinator calls the dataset {proposal.dataset}; {options}",
        "this site reads all images and masks of the raw dataset, and tells sums and histograms of "
        f"their intensities, spacings and sizes, {bins}; field by field in "
        "docs/what-leaves-a-site.md",
        f"this site then preprocesses {', '.join(proposal.configurations) or 'nothing'} with the "
        "federation's plans"
        + (" and replaces plans of the same name" if proposal.replace_plans else ""),
    ]


def _choice(proposal: ChoiceProposal) -> list[str]:
    return [
        f"choice of the best configuration of {describe_queue(proposal.folds)}, trained with "
        f"{proposal.trainer} and plans {proposal.plans_name}, SHA-256 {proposal.plans_hash}; the "
        f"coordinator calls the dataset {proposal.dataset}",
        "this site measures the predictions that it kept of its validation cases, of each "
        f"configuration{', of ensembles of two' if proposal.ensembles else ''} and after nnU-Net's "
        "postprocessing",
        "it tells means of Dice, IoU and voxel counts of each label over all these cases, if they "
        f"are at least {proposal.min_cases}; no prediction leaves it; field by field in "
        "docs/what-leaves-a-site.md",
    ]


def _evaluation(proposal: EvaluationProposal) -> list[str]:
    cases = "imagesTs" if proposal.subset == "Ts" else "imagesTr"
    classifies = proposal.models[0].classifies
    what = "AUROC and the other metrics" if classifies else ", ".join(proposal.metrics)
    quantiles = ", ".join(f"{q:g}" for q in proposal.quantiles)
    told = (
        f"{what} over all its cases, if each class has at least {proposal.min_cases} patients"
        if classifies
        else f"count, mean and variance of {what} of each label"
        f"{', and of their differences' if len(proposal.models) > 1 else ''}, of at least "
        f"{proposal.min_cases} patients"
        + (f"; quantiles {quantiles} where enough patients are around each" if quantiles else "")
    )
    return [
        f"evaluation of {len(proposal.models)} trained model{'s' * (len(proposal.models) > 1)}, "
        "without training",
        *map(_model, proposal.models),
        f"this site predicts all cases of {cases} that have a reference, once, and tells {told}; "
        "no value of a single case, no prediction; field by field in docs/what-leaves-a-site.md",
        "no noise is added: who chooses the model chooses what such means are about "
        "(docs/threat-model.md)",
    ]


def _model(model: ModelDescription) -> str:
    folds = ", ".join(map(str, model.folds))
    steps = len(model.postprocessing)
    return (
        f"model SHA-256 {model.sha256}: {model.trainer}, {model.configuration}, "
        f"fold{'s' * (len(model.folds) > 1)} {folds}, {model.values} weights each; "
        f"{_network(model.plans, model.configuration)}"
        + (f"; {steps} steps of postprocessing" if steps else "")
    )


def _times(numbers: Any) -> str:  # noqa: ANN401  # of plans of others
    return "x".join(f"{n:g}" if isinstance(n, int | float) else str(n) for n in numbers)
