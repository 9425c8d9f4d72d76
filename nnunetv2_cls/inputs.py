"""Find the cases of a folder to predict, whether named as nnU-Net names them or in any way."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_cls.conversion.images import common_channels, list_images, stem
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import some
from nnunetv2_cls.preprocess import ExpectedImages

_READER_OF_CONVERTED = "NaturalImage2DIO"
"""nnU-Net's reader of the images that conversion writes."""


@dataclass
class Inputs:
    """Cases to predict."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """Files of each case, by channel."""
    converted: set[str] = field(default_factory=set)
    """Cases that are read as conversion reads them, not with nnU-Net's reader."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Cases whose files cannot be read, and why."""
    _refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Names of the files that have a problem, by problem."""

    def add(self, case: str, files: Sequence[Path], *, converted: bool = False) -> None:
        """Add a case.

        Raises
        ------
        ClsError
            If another case has this name.
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
        self._refused[problem].append(file.name)

    def check(self, folder: Path) -> None:
        """Raise ``ClsError`` if a file was refused, or there is no case."""
        if self._refused:
            kinds = "; ".join(f"{len(n)} files {p} ({some(n)})" for p, n in self._refused.items())
            raise ClsError(f"{folder}: {kinds}.")
        if not self.files and not self.unreadable:
            raise ClsError(f"{folder} has no image in it.")


def find_inputs(folder: Path, ending: str, expected: ExpectedImages) -> Inputs:
    """Find the cases of a folder, and check the headers of their files.

    nnU-Net's reader reads files named ``CASE_0000`` and so on, one for each channel. A model of PNG
    images also takes what conversion takes: one file for a case, of any name.

    Parameters
    ----------
    folder
        Folder of images.
    ending
        File ending of the dataset, ``file_ending`` of ``dataset.json``.
    expected
        What the model takes.

    Raises
    ------
    ClsError
        Naming files that are no images, or have other channels or dimensions, or names that make
        no case.
    """
    if not folder.is_dir():
        raise ClsError(f"{folder} is no folder: give the folder of the images.")
    inputs = Inputs()
    if expected.reader == _READER_OF_CONVERTED:
        _find_natural(inputs, folder, ending, expected)
    else:
        _find_other(inputs, folder, ending, expected)
    inputs.check(folder)
    return inputs


def _find_natural(inputs: Inputs, folder: Path, ending: str, expected: ExpectedImages) -> None:
    """Add PNG files that are named by case and channel, and images of any other name and format."""
    groups, others = _group(list_images(folder), ending)
    for case, files in groups.items():
        if _problem(expected, files) is None:
            inputs.add(case, files)
        else:
            others += files
    for path in others:
        _add_image(inputs, path, expected.channels, ending)


def _find_other(inputs: Inputs, folder: Path, ending: str, expected: ExpectedImages) -> None:
    """Add files of the dataset's ending, named by case and channel, or by case alone."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    groups, others = _group(paths, ending)
    for case, files in groups.items():
        _add_files(inputs, case, files, expected, ending)
    for path in others:
        if path.name.endswith(ending):
            _add_files(inputs, path.name.removesuffix(ending), [path], expected, ending)
        else:
            inputs.refuse(path, f"are not {ending}, which the model was trained on")


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


def _problem(expected: ExpectedImages, files: Sequence[Path]) -> str | None:
    try:
        return expected.problem([str(file) for file in files])
    except (OSError, RuntimeError, ValueError) as error:
        return f"cannot be read: {error}"


def _add_files(
    inputs: Inputs, case: str, files: Sequence[Path], expected: ExpectedImages, ending: str
) -> None:
    problem = _problem(expected, files)
    if problem is None:
        inputs.add(case, files)
    elif problem.startswith("cannot be read"):
        inputs.unreadable[case] = problem
    else:
        for file in files:
            inputs.refuse(file, problem + _how_to_name(expected.channels, ending))


def _add_image(inputs: Inputs, path: Path, channels: int, ending: str) -> None:
    case = stem(path).removesuffix("_0000")
    try:
        present = common_channels([path])
    except ClsError as error:
        inputs.unreadable[case] = str(error)
        return
    if present == channels:
        inputs.add(case, [path], converted=True)
    else:
        inputs.refuse(
            path, f"have {present} channels, not {channels}{_how_to_name(channels, ending)}"
        )


def _how_to_name(channels: int, ending: str) -> str:
    if channels == 1:
        return ""
    last = f"CASE_{channels - 1:04d}{ending}"
    return f" (a case of several files is CASE_0000{ending} to {last})"
