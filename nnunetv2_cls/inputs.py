"""The cases of a folder that is to be predicted: named as nnU-Net names them, or in any way."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_cls.conversion.images import common_channels, list_images, stem
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import some
from nnunetv2_cls.preprocess import Expected

_OF_IMAGES = "NaturalImage2DIO"
"""nnU-Net's reader of what conversion writes."""


@dataclass
class Inputs:
    """Cases to predict."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """Of each case, by channel."""
    converted: set[str] = field(default_factory=set)
    """Cases to read as conversion reads them, not with nnU-Net's reader."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Case to what is wrong with its file."""
    _wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, case: str, files: Sequence[Path], *, converted: bool = False) -> None:
        """Add a case.

        Raises
        ------
        ClsError
            If another has this name.
        """
        if case in self.files:
            raise ClsError(
                f"{self.files[case][0]} and {files[0]} would both be case {case}: rename one."
            )
        self.files[case] = [str(file) for file in files]
        if converted:
            self.converted.add(case)

    def refuse(self, file: Path, problem: str) -> None:
        """Note a file that the model does not take."""
        self._wrong[problem].append(file.name)

    def check(self, folder: Path) -> None:
        """Raise ``ClsError`` if a file was refused, or there is no case."""
        if self._wrong:
            kinds = "; ".join(f"{len(n)} files {p} ({some(n)})" for p, n in self._wrong.items())
            raise ClsError(f"-i {folder}: {kinds}.")
        if not self.files and not self.unreadable:
            raise ClsError(f"-i {folder}: no image in it.")


def find_inputs(folder: Path, ending: str, expected: Expected) -> Inputs:
    """Find the cases of a folder, and look at the headers of their files.

    Files named ``CASE_0000`` and so on, one for each channel, are read by nnU-Net. A model of PNG
    images also takes what conversion takes, one file for a case, of any name.

    Parameters
    ----------
    folder
        Of images.
    ending
        Of the dataset's files, ``file_ending`` of ``dataset.json``.
    expected
        What the model takes.

    Raises
    ------
    ClsError
        Naming files that are no images, or have other channels or dimensions, or names that make
        no case.
    """
    if not folder.is_dir():
        raise ClsError(f"-i {folder} is no folder.")
    natural = expected.reader == _OF_IMAGES
    paths = (
        list_images(folder)
        if natural
        else sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    )
    found = Inputs()
    groups, others = _group(paths, ending)
    for case, files in groups.items():
        if natural and _problem(expected, files) is not None:
            others += files
        else:
            _add_files(found, case, files, expected, ending)
    for path in others:
        if natural:
            _add_image(found, path, expected.channels, ending)
        elif path.name.endswith(ending):
            _add_files(found, path.name.removesuffix(ending), [path], expected, ending)
        else:
            found.refuse(path, f"are not {ending}, which the model was trained on")
    found.check(folder)
    return found


def _group(paths: Sequence[Path], ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the files of cases whose channels are numbered from 0000, and all other files."""
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in paths:
        if match := re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", path.name):
            numbered[match[1]][int(match[2])] = path
    groups = {
        case: [files[i] for i in sorted(files)]
        for case, files in numbered.items()
        if sorted(files) == list(range(len(files)))
    }
    grouped = {path for files in groups.values() for path in files}
    return groups, [path for path in paths if path not in grouped]


def _problem(expected: Expected, files: Sequence[Path]) -> str | None:
    try:
        return expected.problem([str(file) for file in files])
    except (OSError, RuntimeError, ValueError) as error:
        return f"cannot be read: {error}"


def _add_files(
    found: Inputs, case: str, files: Sequence[Path], expected: Expected, ending: str
) -> None:
    problem = _problem(expected, files)
    if problem is None:
        found.add(case, files)
    elif problem.startswith("cannot be read"):
        found.unreadable[case] = problem
    else:
        for file in files:
            found.refuse(file, problem + _how_to_name(expected.channels, ending))


def _add_image(found: Inputs, path: Path, channels: int, ending: str) -> None:
    case = stem(path).removesuffix("_0000")
    try:
        present = common_channels([path])
    except ClsError as error:
        found.unreadable[case] = str(error)
        return
    if present == channels:
        found.add(case, [path], converted=True)
    else:
        found.refuse(
            path, f"have {present} channels, not {channels}{_how_to_name(channels, ending)}"
        )


def _how_to_name(channels: int, ending: str) -> str:
    if channels == 1:
        return ""
    last = f"CASE_{channels - 1:04d}{ending}"
    return f" (a case of several files is CASE_0000{ending} to {last})"
