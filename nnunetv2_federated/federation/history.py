"""``federation.json``: what happened in each round, in plain numbers.

A number that is not known (the loss of a site without validation cases) is NaN here and ``null``
in the file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.aggregation import dice_per_class, mean_dice, weighted_mean
from nnunetv2_federated.federation.errors import CheckpointError, SettingsError
from nnunetv2_federated.federation.files import format_problem, write_atomically
from nnunetv2_federated.federation.messages import (
    PersonalReport,
    PrivacyTerms,
    TrainReport,
    Validation,
)
from nnunetv2_federated.federation.payload import first_problem

HISTORY_FILE = "federation.json"
_FORMAT = 1
"""Number of the file's format; a file without one is of format 1, too."""
_PARTS = ("sites", "rounds", "personal")
"""What is known only once a federation runs; all else is what was chosen."""
_LARGEST_COUNT = 2**53
"""Beyond it a JSON number is no whole number any more."""

_CHECKED = ConfigDict(extra="ignore", populate_by_name=True)
"""Keys of a later version are passed over."""


def _known(value: object) -> object:
    """Read ``null`` and infinity as NaN."""
    unknown = value is None or (isinstance(value, float) and not math.isfinite(value))
    return math.nan if unknown else value


def _bounded(value: float) -> float:
    if abs(value) >= _LARGEST_COUNT:  # not so for NaN
        raise ValueError("is no number of seconds")
    return value


# strict where it counts: a file may come from anywhere, and no text is taken for a number
Number = Annotated[float, Field(strict=True), BeforeValidator(_known)]
"""A measured number; NaN if it is not known."""
Count = Annotated[int, Field(strict=True, ge=0, lt=_LARGEST_COUNT)]
Seconds = Annotated[Number, AfterValidator(_bounded)]
Numbers = tuple[Number, ...]
Outcome = Literal["accepted", "clipped", "refused"]


@dataclass(frozen=True, config=_CHECKED)
class Scores:
    """Validation of a model over some cases."""

    loss: Number = math.nan
    """Mean over validation iterations."""
    dice_per_class: Numbers = ()
    """Dice of each foreground class, in nnU-Net's order; NaN for one that did not occur."""
    dice: Number = math.nan
    """Mean of ``dice_per_class`` over the classes that occurred."""


@dataclass(frozen=True, config=_CHECKED)
class SiteRecord:
    """The model that a site trained in a round, validated on the site's own cases."""

    training_cases: Count = 0
    train_loss: Number = math.nan
    """Mean over the round's training iterations."""
    loss: Number = math.nan
    """Validation loss, mean over iterations."""
    dice_per_class: Numbers = ()
    """Dice of each foreground class; NaN for one that did not occur."""
    dice: Number = math.nan
    """Mean of ``dice_per_class`` over the classes that occurred."""
    seconds: Seconds = math.nan
    """Seconds of training and validation at the site."""


@dataclass(frozen=True, config=_CHECKED)
class GlobalModelRecord:
    """The global model after a round, validated at the sites."""

    loss: Number = math.nan
    """Validation loss, mean over the iterations of all sites."""
    dice_per_class: Numbers = ()
    """Dice of each foreground class from the voxel counts of all sites."""
    dice: Number = math.nan
    """Mean of ``dice_per_class`` over the classes that occurred."""
    sites: Mapping[str, Scores] = field(default_factory=dict)
    """Validation at each site, by name."""


@dataclass(frozen=True, config=_CHECKED)
class UpdateRecord:
    """The change of the weights that a site sent in a round."""

    norm: Number
    """L2 norm of trained minus sent weights."""
    cosine: Annotated[float, Field(strict=True)] | None
    """Estimated cosine with the mean of the other sites' updates; ``None`` if there is none."""
    bound: Annotated[float, Field(strict=True)] | None
    """Longest norm that was allowed; ``None`` for no bound."""
    outcome: Outcome


@dataclass(frozen=True, config=_CHECKED)
class RoundSeconds:
    """Where the time of a round went, in seconds."""

    round: Seconds = math.nan
    """Seconds from the end of the round before, files included, to the end of this one."""
    training: Seconds = math.nan
    """Seconds of the slowest site; of all together where one site works after another."""
    aggregation: Seconds = math.nan
    writing: Seconds = math.nan
    """Seconds for state, plots and this file of the round before."""
    communication: Seconds = math.nan
    """Seconds that are left."""


@dataclass(frozen=True, config=_CHECKED)
class RoundRecord:
    """One round. ``loss`` and ``dice`` are of the models that the sites trained."""

    round: Count
    """Number of the round, from 0."""
    learning_rate: Annotated[Number, Field(alias="lr")] = math.nan
    started: Seconds = math.nan
    """When the round began, in seconds since the epoch."""
    participants: tuple[str, ...] = ()
    """Names of the sites that were sampled, sorted."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Reason for each sampled site that was not aggregated, by name."""
    updates: Mapping[str, UpdateRecord] = field(default_factory=dict)
    """Length and direction of each site's update, by name."""
    train_loss: Number = math.nan
    """Mean over sites, weighted by training cases."""
    loss: Number = math.nan
    """Validation loss of the sites' own models, mean over the iterations of all sites."""
    dice_per_class: Numbers = ()
    """Dice of each foreground class from the voxel counts of all sites."""
    dice: Number = math.nan
    """Mean of ``dice_per_class`` over the classes that occurred."""
    mean_site_loss: Number = math.nan
    """Mean of the sites' own ``loss``."""
    mean_site_dice: Number = math.nan
    """Mean of the sites' own ``dice``."""
    sites: Mapping[str, SiteRecord] = field(default_factory=dict)
    """The model of each site that was aggregated, by name."""
    global_model: GlobalModelRecord | None = None
    """The aggregated model; ``None`` until the next round has validated it."""
    bytes_down: Count = 0
    """Bytes that were sent to all sites together."""
    bytes_up: Count = 0
    """Bytes that all sites together sent."""
    seconds: RoundSeconds = field(default_factory=RoundSeconds)

    @classmethod
    def of(
        cls,
        reports: Sequence[TrainReport],
        *,
        server_round: int,
        learning_rate: float,
        started: float,
        participants: Sequence[str],
        failed: Mapping[str, str],
        updates: Mapping[str, UpdateRecord],
        bytes_down: int,
        bytes_up: int,
        seconds: RoundSeconds,
    ) -> RoundRecord:
        """Describe a round from the reports of its sites: pooled, averaged over sites, per site."""
        scores = _pooled([report.validation for report in reports])
        sites = {report.site: _of_site(report) for report in reports}
        return cls(
            round=server_round,
            learning_rate=learning_rate,
            started=started,
            participants=tuple(participants),
            failed=dict(failed),
            updates=dict(updates),
            train_loss=weighted_mean(
                (r.train_loss, r.training_cases) for r in reports if r.train_loss is not None
            ),
            loss=scores.loss,
            dice_per_class=scores.dice_per_class,
            dice=scores.dice,
            mean_site_loss=weighted_mean(
                (site.loss, 1) for site in sites.values() if math.isfinite(site.loss)
            ),
            mean_site_dice=mean_dice([site.dice for site in sites.values()]),
            sites=sites,
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            seconds=seconds,
        )

    def validated(self, validations: Mapping[str, Validation]) -> RoundRecord:
        """Return the round with its global model, as the sites have validated it."""
        return replace(self, global_model=server_side(validations))

    def to_plain(self) -> dict[str, Any]:
        """Return plain values under the keys of ``federation.json``; NaN stays NaN."""
        return dict(_ROUND.dump_python(self, by_alias=True))

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> RoundRecord:
        """Read what :meth:`to_plain` returned.

        Raises
        ------
        CheckpointError
            If a value does not fit.
        """
        try:
            record: RoundRecord = _ROUND.validate_python(dict(content))
        except (TypeError, ValueError) as error:
            what = first_problem(error) if isinstance(error, ValidationError) else error
            raise CheckpointError(
                f"the record of a round cannot be read ({what}): start anew without --c."
            ) from error
        return record


def _terms(value: object) -> object:
    """Read a promise from a file as strictly as from a message."""
    if not isinstance(value, Mapping):
        return value
    return TypeAdapter(PrivacyTerms).validate_json(json.dumps(value))


@dataclass(frozen=True, config=_CHECKED)
class SiteSummary:
    """Description that a site gave of itself when it joined."""

    training_cases: Count
    validation_cases: Count = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of its packages, by name."""
    privacy: Annotated[PrivacyTerms | None, BeforeValidator(_terms)] = None
    """What the site promises its patients; ``None`` without differential privacy."""


@dataclass(frozen=True, config=_CHECKED)
class PersonalRecord:
    """What a site told of its personal model; nothing but that it has one, if ``cases`` is 0."""

    cases: Count = 0
    """Validation cases that it was chosen on."""
    metric: str = ""
    before: Number = math.nan
    """Metric of the global model there."""
    after: Number = math.nan
    """Metric of the personal model there."""
    alpha: Number = math.nan
    """Share of the fine-tuned weights in it."""

    @classmethod
    def of(cls, report: PersonalReport) -> PersonalRecord:
        """Take over what a site told."""
        told = {k: v for k, v in asdict(report).items() if k != "site" and v is not None}
        return cls(**told)


def _with_rounds(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    TypeAdapter(Count).validate_python(settings.get("rounds"))
    return settings


@dataclass(frozen=True, config=_CHECKED)
class History:
    """A federation, running or ended: what was chosen, who took part, and every round."""

    dataset: str
    configuration: str
    settings: Annotated[Mapping[str, Any], AfterValidator(_with_rounds)]
    """:class:`.settings.FederationSettings`, by name."""
    sites: Mapping[str, SiteSummary]
    """Sites of the federation, by name."""
    rounds: tuple[RoundRecord, ...]
    """Rounds that are finished, the first one first."""
    fold: int | str = 0
    trainer: str = ""
    plans_name: Annotated[str, Field(alias="plans")] = ""
    plans_hash: str = ""
    initial_lr: Number = math.nan
    parameter_group_shares: Numbers = ()
    """Share of the learning rate of each parameter group of the optimizer."""
    parameters: Count = 0
    """Values of the network that are federated."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the server's packages, by name."""
    personal: Mapping[str, PersonalRecord] = field(default_factory=dict)
    """What sites told of their personal models, by name; none before the federation has ended."""

    @property
    def num_rounds(self) -> int:
        """Rounds that the federation has when it is finished."""
        return int(self.settings["rounds"])

    def header(self) -> dict[str, Any]:
        """Return what was chosen, without sites and what came of it, as JSON has it."""
        plain = _HISTORY.dump_python(self, by_alias=True, exclude=set(_PARTS))
        return {key: _as_json(value) for key, value in plain.items()}

    def write(self, path: Path) -> None:
        """Replace ``federation.json``."""
        plain = _HISTORY.dump_python(self, by_alias=True, include=set(_PARTS))
        parts = {name: _as_json(plain[name]) for name in _PARTS}
        content = {"format": _FORMAT, **self.header(), **parts}
        write_atomically(path, json.dumps(content, indent=1))


def told_before(folder: Path) -> dict[str, PersonalRecord]:
    """Return what sites told of their personal models before a federation was started again.

    Parameters
    ----------
    folder
        nnU-Net's result folder of a fold.
    """
    try:
        return dict(read_history(folder).personal)
    except SettingsError:  # none is written yet, or it is damaged and written anew
        return {}


def read_history(folder: Path) -> History:
    """Read ``federation.json``, which may come from another machine.

    Parameters
    ----------
    folder
        nnU-Net's result folder of a fold, ``.../fold_0``.

    Raises
    ------
    SettingsError
        If there is none, a value does not fit, or it is of another format; says which in one line.
    """
    path = folder / HISTORY_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        _check_format(content)
        history: History = _HISTORY.validate_python(content)
    except ValidationError as error:
        what = first_problem(error)
    except (OSError, ValueError, RecursionError) as error:
        what = str(error)
    else:
        return history
    raise SettingsError(
        f"{path} cannot be read ({what}): give the fold_X folder of a federation that has "
        "finished a round."
    )


def _check_format(content: object) -> None:
    found = content.get("format", _FORMAT) if isinstance(content, Mapping) else _FORMAT
    if type(found) is not int:
        raise ValueError("its format is no number")
    if found != _FORMAT:
        raise ValueError(format_problem(found, _FORMAT, "this installation").rstrip("."))


def _pooled(validations: Sequence[Validation]) -> Scores:
    """Loss over all iterations, and Dice from the voxel counts of all sites.

    Counts of another number of classes than at most sites cannot be added; they are left out.
    """
    (classes, _), *_ = Counter(len(v.tp) for v in validations).most_common(1) or [(0, 0)]
    alike = [v for v in validations if len(v.tp) == classes]
    dice = dice_per_class(*(_summed(alike, counts) for counts in ("tp", "fp", "fn")))
    iterations = sum(v.iterations for v in alike)
    losses = [math.nan if v.loss is None else v.loss for v in alike]
    loss = sum(losses) / iterations if iterations else math.nan
    return Scores(loss, tuple(dice), mean_dice(dice))


def _summed(validations: Sequence[Validation], counts: str) -> list[float]:
    """Add the voxel counts of each class."""
    return [sum(column) for column in zip(*(getattr(v, counts) for v in validations), strict=True)]


def _of_site(report: TrainReport) -> SiteRecord:
    scores = _pooled([report.validation])
    return SiteRecord(
        training_cases=report.training_cases,
        train_loss=math.nan if report.train_loss is None else report.train_loss,
        loss=scores.loss,
        dice_per_class=scores.dice_per_class,
        dice=scores.dice,
        seconds=report.seconds,
    )


def server_side(validations: Mapping[str, Validation]) -> GlobalModelRecord:
    """Summarise a global model that was validated at the sites: pooled, and per site."""
    scores = _pooled(list(validations.values()))
    return GlobalModelRecord(
        loss=scores.loss,
        dice_per_class=scores.dice_per_class,
        dice=scores.dice,
        sites={site: _pooled([validation]) for site, validation in validations.items()},
    )


def look_up(record: RoundRecord, *names: str) -> float | None:
    """Return a number of a round; ``None`` if it is not known.

    Parameters
    ----------
    record
        The round.
    *names
        Attributes and names of sites that lead to it: ``global_model``, ``sites``, ``bern``,
        ``dice``.
    """
    value: Any = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if value is None:
            return None
    return float(value) if math.isfinite(value) else None


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, each with its path: ``settings/rounds``."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def round_numbers(record: RoundRecord) -> dict[str, float]:
    """Return what a round says of its sites, its traffic and its time, by path.

    ``sites/<name>/dice`` is of the model the site trained, ``sites/<name>/global_model/dice`` of
    the global model there. Why a site failed is left out: the text of an error may name a case.
    """
    validated = record.global_model.sites if record.global_model is not None else {}
    names = sorted({*record.participants, *record.sites, *validated})
    tree = {
        "seconds": asdict(record.seconds),
        "bytes_down": record.bytes_down,
        "bytes_up": record.bytes_up,
        "failed_sites": len(record.failed),
        "sites": {name: _site_numbers(record, validated, name) for name in names},
    }
    numbers: dict[str, float] = {}
    for path, value in leaves(tree):
        if isinstance(value, Sequence):  # nnU-Net's spelling of classes
            numbers |= {f"{path}/class_{i}": v for i, v in enumerate(value, 1)}
        else:
            numbers[path] = value
    return {path: float(value) for path, value in numbers.items() if math.isfinite(value)}


def _site_numbers(
    record: RoundRecord, validated: Mapping[str, Scores], name: str
) -> dict[str, Any]:
    trained, update, scores = record.sites.get(name), record.updates.get(name), validated.get(name)
    numbers: dict[str, Any] = {} if trained is None else asdict(trained)
    if update is not None:
        numbers["update_norm"] = update.norm
        if update.cosine is not None:
            numbers["update_cosine"] = update.cosine
    numbers["failed"] = int(name in record.failed)
    return numbers | {"global_model": {} if scores is None else asdict(scores)}


def _as_json(value: object) -> object:
    """NaN and infinity are not JSON; a reader gets ``null``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value


_ROUND, _HISTORY = TypeAdapter(RoundRecord), TypeAdapter(History)
"""Readers and writers."""
