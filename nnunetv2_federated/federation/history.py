"""``federation.json``: what happened in each round, in plain numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.aggregation import dice_per_class, mean_dice, weighted_mean
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.messages import TrainReport, Validation

Record = dict[str, Any]


def _pooled(validations: Sequence[Validation]) -> dict[str, Any]:
    """Loss over all iterations, and Dice from the voxel counts of all sites.

    Counts of another number of classes than at most sites cannot be added; they are left out.
    """
    (classes, _), *_ = Counter(len(v.tp) for v in validations).most_common(1) or [(0, 0)]
    validations = [v for v in validations if len(v.tp) == classes]
    tp, fp, fn = (
        [sum(column) for column in zip(*(getattr(v, key) for v in validations), strict=True)]
        for key in ("tp", "fp", "fn")
    )
    dice = dice_per_class(tp, fp, fn)
    iterations = sum(v.iterations for v in validations)
    losses = [math.nan if v.loss is None else v.loss for v in validations]
    return {
        "loss": sum(losses) / iterations if iterations else math.nan,
        "dice_per_class": dice,
        "dice": mean_dice(dice),
    }


def client_side(reports: Sequence[TrainReport]) -> Record:
    """Summarise the locally trained models: pooled, averaged over sites, and per site."""
    sites = {
        report.site: {
            "training_cases": report.training_cases,
            "train_loss": report.train_loss,
            **_pooled([report.validation]),
            "seconds": report.seconds,
        }
        for report in reports
    }
    return {
        "train_loss": weighted_mean((r.train_loss, r.training_cases) for r in reports),
        **_pooled([report.validation for report in reports]),
        "mean_site_loss": weighted_mean(
            (site["loss"], 1) for site in sites.values() if math.isfinite(site["loss"])
        ),
        "mean_site_dice": mean_dice([site["dice"] for site in sites.values()]),
        "sites": sites,
    }


def server_side(validations: Mapping[str, Validation]) -> Record:
    """Summarise a global model that was validated at the sites: pooled, and per site."""
    return {
        **_pooled(list(validations.values())),
        "sites": {site: _pooled([v]) for site, v in validations.items()},
    }


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, each with its path: ``settings/rounds``."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _update_numbers(update: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"update_{key}": update[key] for key in ("norm", "cosine") if update.get(key) is not None
    }


def round_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what a round says of its sites, its traffic and its time, by path.

    ``sites/<name>/dice`` is the locally trained model's, ``sites/<name>/global_model/dice`` the
    global model's there. Why a site failed is left out: the text of an error may name a case.
    """
    validated = (record["global_model"] or {}).get("sites", {})
    updates = record.get("updates", {})
    names = sorted({*record["participants"], *record["sites"], *validated})
    tree = {
        "seconds": record["seconds"],
        "bytes_down": record["bytes_down"],
        "bytes_up": record["bytes_up"],
        "failed_sites": len(record["failed"]),
        "sites": {
            name: {
                **record["sites"].get(name, {}),
                **_update_numbers(updates.get(name, {})),
                "failed": int(name in record["failed"]),
                "global_model": validated.get(name, {}),
            }
            for name in names
        },
    }
    numbers: dict[str, float] = {}
    for path, value in leaves(tree):
        if isinstance(value, list):  # nnU-Net's spelling of classes
            numbers |= {f"{path}/class_{i}": v for i, v in enumerate(value, 1)}
        else:
            numbers[path] = value
    return {path: float(value) for path, value in numbers.items() if math.isfinite(value)}


def _plain(value: object) -> object:
    """NaN and infinity are not JSON; a reader gets null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def write_history(path: Path, header: Record, rounds: Sequence[Record]) -> None:
    """Rewrite ``federation.json``."""
    write_atomically(path, json.dumps(_plain({**header, "rounds": list(rounds)}), indent=1))
