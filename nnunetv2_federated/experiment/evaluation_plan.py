"""What an evaluation asks of its sites, from what a user chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from nnunetv2_federated.experiment.evaluate_choices import QUANTILES, EvaluateChoices
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import SURFACE, EvaluationProposal, Metric
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.nnunet.evaluation.built_model import Machine, label_keys
from nnunetv2_federated.nnunet.evaluation.evaluated_site import EvaluatedSite
from nnunetv2_federated.nnunet.evaluation.model_files import WhichModel
from nnunetv2_federated.nnunet.evaluation.read_model import read_model
from nnunetv2_federated.nnunet.training.packages import defining_packages


def check_sites(choices: EvaluateChoices, *, over_network: bool) -> None:
    """Refuse sites that are missing, or of another place than chosen.

    Raises
    ------
    SettingsError
        If it is so.
    """
    chosen = choices.site_datasets or ()
    if over_network and chosen:
        raise SettingsError(
            "--site-datasets with --server: sites on other machines name their own."
        )
    if not over_network and not chosen:
        raise SettingsError(
            "no sites: give --site-datasets DATASET..., one for each site, or --server HOST[:PORT] "
            "for sites on other machines."
        )


def open_sites(
    choices: EvaluateChoices, machine: Machine, store: WeightsStore
) -> list[EvaluatedSite]:
    """Find the sites of this machine.

    Raises
    ------
    SettingsError
        If a dataset is unknown, or named twice.
    """
    chosen = choices.site_datasets or ()
    sites = [EvaluatedSite.open(name, machine, store) for name in chosen]
    if len({site.name for site in sites}) < len(sites):
        raise SettingsError(f"--site-datasets {' '.join(chosen)}: a dataset is named twice.")
    return sites


def chosen_metrics(choices: EvaluateChoices, *, over_network: bool) -> tuple[Metric, ...]:
    """Return the metrics of each label.

    Raises
    ------
    SettingsError
        If one needs a package that this machine, which computes it, does not have.
    """
    monai = find_spec("monai") is not None
    if choices.metrics is None:
        return ("Dice", *SURFACE) if monai else ("Dice",)
    lacking = [name for name in choices.metrics if name in SURFACE]
    if lacking and not monai and not over_network:
        raise SettingsError(
            f"--metrics {' '.join(choices.metrics)}: {lacking[0]} needs MONAI: pip install "
            '"nnunetv2-federated[surface]", or leave it out.'
        )
    return tuple(dict.fromkeys(choices.metrics))


def read_models(
    choices: EvaluateChoices, store: WeightsStore, machine: Machine, say: Callable[[str], None]
) -> list[ModelDescription]:
    """Read the models, and keep their weights.

    Raises
    ------
    SettingsError
        If one is none, or names code.
    """
    which = WhichModel(choices.folds, choices.checkpoint, choices.configuration)
    models = []
    for path in (choices.model, choices.against):
        if path is None:
            continue
        model = read_model(path, which, store, machine, postprocess=choices.postprocessing)
        models.append(model)
        folds = ", ".join(map(str, model.folds))
        say(
            f"{path.name}: {model.trainer}, {model.configuration}, folds {folds}, "
            f"{model.values} weights each, SHA-256 {model.sha256[:12]}"
        )
    return models


def propose(
    choices: EvaluateChoices, models: list[ModelDescription], metrics: Sequence[Metric]
) -> EvaluationProposal:
    """Return what the sites are asked.

    Raises
    ------
    SettingsError
        If the two models do not fit each other, or metrics are chosen for a classifier.
    """
    first = models[0]
    if first.classifies:
        _check_classifier(choices)
    if not _comparable(first, models[-1]):
        raise SettingsError(
            f"--against {choices.against}: is of other labels than {choices.model}; paired "
            "differences need the same."
        )
    packages: dict[str, str] = {}
    for model in models:
        packages |= defining_packages(model.plans, model.trainer)
    return EvaluationProposal(
        models=models,
        subset="Ts" if choices.test_set else "Tr",
        metrics=[] if first.classifies else list(metrics),
        min_cases=choices.min_cases,
        quantiles=[] if first.classifies else sorted(set(choices.quantiles or QUANTILES)),
        packages=packages,
    )


def _check_classifier(choices: EvaluateChoices) -> None:
    if choices.metrics is not None:
        raise SettingsError(
            f"--metrics {' '.join(choices.metrics)}: all metrics of a classifier are told; leave "
            "the flag out."
        )
    if choices.quantiles is not None:
        raise SettingsError("--quantiles: a classifier has no metric of a single case.")


def _comparable(first: ModelDescription, other: ModelDescription) -> bool:
    if first.classifies or other.classifies:
        return first.dataset_json.get("classes") == other.dataset_json.get("classes")
    return label_keys(first) == label_keys(other)
