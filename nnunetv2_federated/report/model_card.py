"""``MODEL_CARD.md``: what a released model is, on one page for who uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nnunetv2_federated.federation.checksums import CHECKSUMS_FILE
from nnunetv2_federated.federation.messages import PrivacyTerms
from nnunetv2_federated.federation.model_card import (
    CARD_FILE,
    STOCK,
    FoldRecord,
    Metrics,
    ModelCard,
    Scores,
)
from nnunetv2_federated.report.privacy_terms import PROMISED, privacy_rows
from nnunetv2_federated.report.text import markdown, markdown_table

_NOT_SAID = "Not stated. Ask whoever released the model before you use it."
_NO_PRIVACY = (
    "Trained without differential privacy: nothing bounds what its weights tell of the patients it "
    "was trained on."
)
_SEVERAL = (
    "Each fold is a training of its own, and patients have paid for each. *All trainings* is what "
    "those of a site had paid when that training began, with the whole of it: the largest value "
    "of a site counts."
)
_NO_DEVICE = (
    "This is the result of research and no medical device. Its results hold for images like those "
    "it was tested on."
)
_SETTINGS = ("strategy", "local_epochs", "iterations_per_epoch", "weighting", "batchnorm")
_CLASSIFY = (
    "`nnUNetv2_predict_cls` of the package nnunetv2-federated classifies with it. The ONNX files "
    "take images that were preprocessed by nnU-Net as the plans say, and return probabilities."
)


def card_as_markdown(card: ModelCard) -> str:
    """Return the page."""
    parts = [
        f"# {markdown(card.dataset)}",
        _NO_DEVICE,
        "## What it is for",
        _NOT_SAID if card.purpose is None else markdown(card.purpose),
        "## Licence",
        _NOT_SAID if card.licence is None else markdown(card.licence),
        "## Contact",
        _NOT_SAID if card.contact is None else markdown(card.contact),
        "## Model",
        markdown_table(*_model_rows(card)),
        "## Use",
        *_use(card),
        "## Training",
        markdown_table(*_training_rows(card)),
        "## Sites",
        markdown_table(*_site_rows(card)),
        "## Privacy",
        *_privacy(card),
        "## Validation",
        "Mean over the validation cases of a fold, which the model was not trained on. Means of "
        "too few cases are left out.",
        markdown_table(*_validation_rows(card)),
        "## Tests",
        markdown_table(*_test_rows(card)),
        "## Software",
        markdown_table(*_software_rows(card)),
        "## Is it whole?",
        f"`sha256sum -c {CHECKSUMS_FILE}` in this folder, or `nnUNetv2_federated_release "
        f"--verify`, compares each file with its hash. For programs: `{CARD_FILE}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _model_rows(card: ModelCard) -> tuple[list[str], list[list[str]]]:
    named = {
        field.replace("_", " "): _list(card.declared[field])
        for field in ("channel_names", "labels", "classes")
        if field in card.declared
    }
    rows = {
        "configurations": ", ".join(card.configurations),
        "folds": ", ".join(dict.fromkeys(str(fold.fold) for fold in card.folds)),
        "checkpoints": ", ".join(card.checkpoints),
        "trainer": card.trainer,
        "plans": f"{card.plans_name}, SHA-256 {card.plans_hash}",
        "runs with": card.runs_with,
        **named,
    }
    return ["", ""], [[name, value] for name, value in rows.items()]


def _list(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _use(card: ModelCard) -> list[str]:
    folds = " ".join(dict.fromkeys(str(fold.fold) for fold in card.folds))
    predict = (
        f"nnUNetv2_predict -i IN -o OUT -d {card.dataset} -c {card.configurations[0]} -f {folds} "
        f"-tr {card.trainer} -p {card.plans_name} -chk {card.checkpoints[0]}"
    )
    install = "nnUNetv2_install_pretrained_model_from_zip RELEASE.zip"
    if "classes" in card.declared:
        predict = predict.replace("nnUNetv2_predict", "nnUNetv2_predict_cls")
    parts = [f"```bash\n{install}\n{predict}\n```"]
    if card.runs_with == STOCK:
        parts.append("nnU-Net alone runs it.")
    else:
        parts.append(markdown(f"It runs with {card.runs_with}."))
    if "classes" in card.declared:
        parts.append(_CLASSIFY)
    if card.bundles:
        parts.append(
            "As a MONAI bundle (`pip install nnunetv2 monai fire`): `python -m monai.bundle run "
            "--config_file configs/inference.json "
            "--bundle_root . --input_dir IN --output_dir OUT` in "
            + " or ".join(f"`{bundle}`" for bundle in card.bundles)
            + "."
        )
    parts += [
        markdown(
            f"{onnx.file}: input {' x '.join(map(str, onnx.input_shape))}, folds "
            f"{', '.join(map(str, onnx.folds))}. On {onnx.images} random images its probabilities "
            f"differ by at most {onnx.difference:.2g} from PyTorch's."
        )
        for onnx in card.onnx
    ]
    return parts


def _training_rows(card: ModelCard) -> tuple[list[str], list[list[str]]]:
    names = [name.replace("_", " ") for name in _SETTINGS]
    header = ["configuration", "fold", "rounds", *names]
    return header, [
        [
            *_place(fold),
            "no federation" if fold.rounds is None else str(fold.rounds),
            *(_setting(fold, name) for name in _SETTINGS),
        ]
        for fold in card.folds
    ]


def _setting(fold: FoldRecord, name: str) -> str:
    if not fold.settings:
        return "-"
    value = fold.settings.get(name)
    return "the trainer's" if value is None else str(value)


def _place(fold: FoldRecord) -> list[str]:
    return [fold.configuration, str(fold.fold)]


def _site_rows(card: ModelCard) -> tuple[list[str], list[list[str]]]:
    header = ["configuration", "fold", "site", "training cases", "validation cases", "software"]
    return header, [
        [
            *_place(fold),
            name,
            str(site.training_cases),
            str(site.validation_cases),
            ", ".join(f"{package} {version}" for package, version in site.versions.items()),
        ]
        for fold in card.folds
        for name, site in fold.sites.items()
    ]


def _privacy(card: ModelCard) -> list[str]:
    promised = {f"{fold.configuration}, fold {fold.fold}": _promises(fold) for fold in card.folds}
    if not any(promised.values()):
        return [_NO_PRIVACY]
    parts = [markdown_table(*privacy_rows(promised)), PROMISED]
    parts += [_SEVERAL] if len(card.folds) > 1 else []
    if any(len(_promises(fold)) < max(len(fold.sites), 1) for fold in card.folds):
        parts.append(f"Folds and sites that are not listed: {_NO_PRIVACY}")
    return parts


def _promises(fold: FoldRecord) -> list[tuple[str, PrivacyTerms]]:
    sites = fold.sites.items()
    return [(name, site.privacy) for name, site in sites if site.privacy is not None]


def _validation_rows(card: ModelCard) -> tuple[list[str], list[list[str]]]:
    rows = [
        (_place(fold), site, scores)
        for fold in card.folds
        for site, scores in (("all", fold.validation), *fold.site_validation.items())
        if scores is not None
    ]
    metrics = _metrics(scores for _, _, scores in rows)
    header = ["configuration", "fold", "site", "cases", *metrics]
    return header, [
        [*place, site, str(scores.cases), *_values(scores.metrics, metrics)]
        for place, site, scores in rows
    ]


def _test_rows(card: ModelCard) -> tuple[list[str], list[list[str]]]:
    metrics = _metrics(test.scores for test in card.tests)
    header = ["from", "model", "on", "cases", "runs", *metrics]
    return header, [
        [
            test.source,
            test.model or "this",
            f"{test.group} (external)" if test.external else test.group,
            str(test.scores.cases),
            str(test.runs),
            *_values(test.scores.metrics, metrics),
        ]
        for test in card.tests
    ]


def _metrics(scores: Iterable[Scores]) -> list[str]:
    return list(dict.fromkeys(name for each in scores for name in each.metrics))


def _values(metrics: Metrics, names: list[str]) -> list[str]:
    values = [metrics.get(name) for name in names]
    return ["-" if value is None else f"{value:.4f}" for value in values]


def _software_rows(card: ModelCard) -> tuple[list[str], list[list[str]]]:
    names = dict.fromkeys((*card.released_with, *card.trained_with))
    return ["package", "trained with", "released with"], [
        [name, card.trained_with.get(name, "-"), card.released_with.get(name, "-")]
        for name in names
    ]
