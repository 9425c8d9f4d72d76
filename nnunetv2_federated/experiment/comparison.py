"""A comparison: its arms, seeds and folds, frozen and kept as ``comparison.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import format_problem, write_atomically
from nnunetv2_federated.federation.partition import Sites

COMPARISON_FILE = "comparison.json"
FORMAT = 2
"""Number of the format of ``comparison.json``; files without a number are of the first."""
CENTRALISED = "centralised"
ENSEMBLE = "ensemble"
"""Arm of the models of single sites together; nothing is trained for it."""
PERSONAL = "personal"
"""Kind of the arms of single sites' personal models, which a federated arm leaves."""


@dataclass(frozen=True)
class Arm:
    """One way to get a model.

    It is trained (``local/<site>``, ``federated/<name>`` or ``centralised``), or others leave it
    (``personal/<name>/<site>``, ``ensemble``).
    """

    name: str
    options: Mapping[str, Any]
    """What was chosen for its trainings, spelled as in a settings file: plain JSON."""
    partitions: Mapping[int, Sites] = field(default_factory=dict)
    """Sites by seed, where a federated arm deals the cases otherwise than the comparison does."""

    @property
    def kind(self) -> str:
        """``local``, ``federated``, ``centralised``, ``personal`` or ``ensemble``."""
        return self.name.partition("/")[0]

    @property
    def trains(self) -> bool:
        """Whether it is a training of its own."""
        return self.kind not in (PERSONAL, ENSEMBLE)


@dataclass(frozen=True)
class Model:
    """One training: an arm with a seed, on a fold."""

    arm: str
    seed: int
    fold: int | str

    @property
    def folder(self) -> Path:
        """Folder of the model, below that of the comparison."""
        return Path("models") / self.arm / f"seed_{self.seed}" / f"fold_{self.fold}"

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True)
class Comparison:
    """A comparison with every choice made."""

    dataset: str
    configuration: str
    plans_name: str
    plans_hash: str
    trainer: str
    folds: list[int | str]
    seeds: list[int]
    sites: dict[int, Sites]
    """Sites that train, by seed."""
    external: Sites
    """Sites that only test."""
    arms: list[Arm]
    test_set: bool
    """Test on ``imagesTs`` in place of the fold's validation cases."""
    test_sites: dict[str, str]
    """Site of a case of ``imagesTs``, where it is known."""

    def models(self) -> list[Model]:
        """Return all models, seed by seed and fold by fold: an early report then has all arms."""
        return [
            Model(arm.name, seed, fold)
            for seed in self.seeds
            for fold in self.folds
            for arm in self.arms
        ]

    def arm(self, name: str) -> Arm:
        """Return the arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def sites_of(self, arm: Arm, seed: int) -> Sites:
        """Return the sites that an arm trains with."""
        return arm_sites(arm, self.sites[seed], seed)

    def to_json(self) -> str:
        """Return the comparison as JSON that :meth:`from_json` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        SettingsError
            If the text is of another format.
        """
        raw = json.loads(text)
        _check_format(raw)
        del raw["format"]
        raw["sites"] = _by_seed(raw["sites"])
        raw["arms"] = [
            Arm(arm["name"], arm["options"], _by_seed(arm["partitions"])) for arm in raw["arms"]
        ]
        return cls(**raw)


def _by_seed(sites: Mapping[str, Sites]) -> dict[int, Sites]:
    """Read seeds, which are texts as keys of JSON."""
    return {int(seed): found for seed, found in sites.items()}


def _check_format(content: object) -> None:
    """Raise ``SettingsError`` if the content of a comparison's file is of another format."""
    found = content.get("format", 1) if isinstance(content, dict) else None
    if type(found) is not int:
        raise SettingsError("it is not the file of a comparison")
    if found != FORMAT:
        raise SettingsError(f"it has {format_problem(found, FORMAT, 'this installation')}")


def arm_sites(arm: Arm, sites: Sites, seed: int) -> Sites:
    """Return the sites of an arm: one of them, all, or one site with the cases of all."""
    if arm.kind == "local":
        site = arm.name.removeprefix("local/")
        return {site: sites[site]}
    if arm.kind == CENTRALISED:
        return {CENTRALISED: sorted(case for cases in sites.values() for case in cases)}
    return arm.partitions.get(seed, sites)


def split_external(sites: Sites, names: list[str]) -> tuple[Sites, Sites]:
    """Separate the sites that train from those that only test.

    Raises
    ------
    SettingsError
        If a site is unknown, or none is left to train.
    """
    for name in names:
        if name not in sites:
            raise SettingsError(
                f"--external-site {name}: there is no such site; the sites are {', '.join(sites)}."
            )
    training = {site: cases for site, cases in sites.items() if site not in names}
    if not training:
        raise SettingsError(f"--external-site {' '.join(names)}: no site is left to train.")
    return training, {name: sites[name] for name in names}


def open_comparison(folder: Path, comparison: Comparison) -> bool:
    """Begin a comparison in a folder, or check that it is the one that was begun there.

    Returns
    -------
    bool
        Whether it had begun.

    Raises
    ------
    SettingsError
        If the folder is of another comparison, or of something else.
    """
    path = folder / COMPARISON_FILE
    if path.is_file():
        try:
            stored = json.loads(path.read_text())
            _check_format(stored)
        except (ValueError, SettingsError) as error:
            what = str(error).rstrip(".")
            raise SettingsError(f"{path} cannot be read ({what}): give another -o.") from error
        ours = json.loads(comparison.to_json())
        different = first_difference(stored, ours)
        if different is not None:
            raise SettingsError(
                f"-o {folder}: holds another comparison, with other {different}; give another -o, "
                "or the settings it was begun with."
            )
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SettingsError(
                f"-o {folder}: is not empty and holds no {COMPARISON_FILE}; give a new folder."
            )
        write_atomically(path, comparison.to_json())
    except OSError as error:
        raise SettingsError(f"-o {folder}: cannot be written ({error}).") from error
    return False


def first_difference(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """Return the first field that differs, as ``plans_hash`` or ``arms (federated/fedprox)``."""
    for key, value in asked.items():
        theirs = stored.get(key)
        if theirs == value:
            continue
        if key != "arms" or not isinstance(theirs, list):
            return key
        names = [
            {arm["name"] for arm in arms if arm not in others}
            for arms, others in ((value, theirs), (theirs, value))
        ]
        return f"arms ({', '.join(sorted(names[0] | names[1])) or 'their order'})"
    return None
