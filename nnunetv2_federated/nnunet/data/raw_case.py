"""One case of a raw dataset, read with nnU-Net and compared with what the dataset declares."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunetv2_federated.federation.children import end_with_parent
from nnunetv2_federated.federation.declared import declared_of
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.fingerprint import CaseFingerprint
from nnunetv2_federated.federation.intensities import Channel
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.raw_files import CaseFiles, channel_gap, training_files

logger = logging.getLogger(__name__)

_MOST_SHOWN = 3
_LARGEST_LABEL = 255
_LONGEST_NOTE = 1000


class Work(NamedTuple):
    """What is needed to read a case and to check it; sent to worker processes."""

    images: Sequence[str]
    """Files of its images, by channel."""
    label: str
    """File of its mask."""
    reader_writer: type
    """Class of nnU-Net's reader/writer."""
    samples: int
    """Number of voxels to sample."""
    channels: int
    """Number of channels that the dataset declares."""
    labels: tuple[int, ...]
    """Values that a mask may have."""


def training_cases(raw: Path, dataset_json: dict[str, Any]) -> dict[str, CaseFiles]:
    """Return the files of each training case; refuse channels that are not numbered.

    Raises
    ------
    SettingsError
        If a file in ``imagesTr`` has no channel number. Its text may leave the site: it names no
        file.
    """
    cases = training_files(raw, dataset_json)
    if "dataset" in dataset_json:
        return cases
    ending = dataset_json["file_ending"]
    numbered = {image for case in cases.values() for image in case.images}
    files = (raw / "imagesTr").iterdir()
    lacking = sum(path.name.endswith(ending) and str(path) not in numbered for path in files)
    if lacking:
        raise SettingsError(
            f"{lacking} files in imagesTr have no channel number: nnU-Net needs names such as "
            f"CASE_0000{ending}, also where there is one channel only."
        )
    gaps = [case for case, files in cases.items() if channel_gap(files.images)]
    if gaps:
        logger.error("channels not numbered 0000, 0001, ... without a gap: %s", ", ".join(gaps))
        raise SettingsError(
            f"{len(gaps)} cases in imagesTr have channels that are not numbered 0000, 0001, ... "
            "without a gap: name them so; the log names the cases."
        )
    return cases


def largest_images(cases: Mapping[str, CaseFiles]) -> list[str]:
    """Return the image files of the case whose images have most bytes."""
    return max(
        (case.images for case in cases.values()),
        key=lambda files: sum(Path(file).stat().st_size for file in files),
    )


def declared_values(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Return all values that a mask may have."""
    manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    ignored = [manager.ignore_label] if manager.has_ignore_label else []
    return tuple(int(value) for value in (*manager.all_labels, *ignored))


def verify_integrity(raw: Path, processes: int) -> tuple[str, str] | None:
    """Run nnU-Net's ``--verify_dataset_integrity``.

    Parameters
    ----------
    raw
        Folder of the raw dataset.
    processes
        Number of worker processes.

    Returns
    -------
    tuple or None
        Type of the error, and all that was printed of it, which may name cases; ``None`` if nnU-Net
        has nothing against the dataset.
    """
    with keeping_output() as printed:
        try:
            verify_dataset_integrity(str(raw), processes)
        except (AssertionError, RuntimeError, FileNotFoundError) as error:
            return type(error).__name__, clean(f"{printed()} {error}", _LONGEST_NOTE)
    return None


def choose_reader(
    dataset_json: dict[str, Any], example: str
) -> tuple[type[BaseReaderWriter] | None, str]:
    """Choose a reader/writer as nnU-Net does, which may try it on an image.

    Parameters
    ----------
    dataset_json
        ``dataset.json`` of the dataset.
    example
        File of one of its images.

    Returns
    -------
    tuple
        Class of the reader/writer, ``None`` if none can read the image; and why the last one that
        was tried could not.
    """
    said = io.StringIO()
    try:
        # nnU-Net prints the traceback of a reader that fails
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            reader: type[BaseReaderWriter] = determine_reader_writer_from_dataset_json(
                dataset_json, example, verbose=False
            )
    except RuntimeError as error:
        return None, clean(_last_line(said.getvalue()) or error)
    return reader, clean(_last_line(said.getvalue()))


@contextlib.contextmanager
def keeping_output() -> Iterator[Callable[[], str]]:
    """Collect what this process and its children print; yields a function that returns the text.

    The file descriptor is redirected: nnU-Net's worker processes are spawned, and do not inherit a
    replaced ``sys.stdout``.
    """
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as kept:
        before = os.dup(1)
        os.dup2(kept.fileno(), 1)

        def text() -> str:
            sys.stdout.flush()
            kept.seek(0)
            return kept.read()

        try:
            with contextlib.redirect_stdout(kept):
                yield text
        finally:
            os.dup2(before, 1)
            os.close(before)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class _UnusableError(Exception):
    """A case that cannot be used.

    Its text says what is wrong; only what stands before the first colon may leave the site.
    """


class _CheckingReader:
    """Reader for nnU-Net's extractor that refuses images and masks the dataset does not declare."""

    def __init__(
        self, reader: type[BaseReaderWriter], channels: int, labels: Sequence[int]
    ) -> None:
        self._reader = reader()
        self._channels = channels
        self._labels = labels
        self._shape: tuple[int, ...] = ()

    def read_images(self, files: Sequence[str]) -> tuple[NDArray[Any], dict[str, Any]]:
        images, properties = self._read("image", self._reader.read_images, files)
        if len(images) != self._channels:
            raise _UnusableError(f"{len(images)} of {self._channels} channels")
        self._shape = images.shape[1:]
        return images, properties

    def read_seg(self, file: str) -> tuple[NDArray[Any], dict[str, Any]]:
        if not Path(file).is_file():
            raise _UnusableError("no mask in labelsTr")
        mask, properties = self._read("mask", self._reader.read_seg, file)
        if len(mask) != 1:
            raise _UnusableError(f"mask of {len(mask)} channels")
        if mask.shape[1:] != self._shape:
            raise _UnusableError(
                f"mask of another size than the image: {mask.shape[1:]}, {self._shape}"
            )
        # as nnU-Net; NumPy's unique sorts, which takes ten times as long
        values = pd.unique(mask.ravel())
        if np.any(np.isnan(values)):
            raise _UnusableError("NaN")
        others = sorted(float(value) for value in values if value not in self._labels)
        if others:
            raise _UnusableError(_undeclared(others))
        return mask, properties

    def _read(self, what: str, read: Callable[[Any], Any], files: object) -> Any:  # noqa: ANN401
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):  # nnU-Net's readers print what they refuse
                return read(files)
        except Exception as error:
            reason = " ".join([type(error).__name__, str(error), said.getvalue()])
            raise _UnusableError(
                f"{what} not readable by {type(self._reader).__name__}: {clean(reason)}"
            ) from error


def _undeclared(values: Sequence[float]) -> str:
    """Say which labels are not declared.

    Values that look like intensities come after a colon: they must not leave the site.
    """
    shown = clean(", ".join(f"{value:g}" for value in values[:_MOST_SHOWN]))
    whole = all(value.is_integer() and abs(value) <= _LARGEST_LABEL for value in values)
    if len(values) > _MOST_SHOWN or not whole:
        return f"undeclared labels: {shown}, {len(values)} in all"
    return f"undeclared label{'s' if len(values) > 1 else ''} {shown}"


def work_of(
    cases: Mapping[str, CaseFiles],
    dataset_json: Mapping[str, Any],
    reader_writer: type[BaseReaderWriter],
    samples: int,
) -> list[Work]:
    """Return what :func:`analyse_case` needs, for each case.

    Parameters
    ----------
    cases
        Files of each case.
    dataset_json
        ``dataset.json`` of the dataset.
    reader_writer
        Class that reads the files.
    samples
        Number of voxels to sample in each case.
    """
    channels = len(declared_of(dataset_json)["channel_names"])
    labels = declared_values(dataset_json)
    return [
        Work(case.images, case.label, reader_writer, samples, channels, labels)
        for case in cases.values()
    ]


def analyse_case(work: Work) -> CaseFingerprint | str:
    """Return the fingerprint of a case as nnU-Net's extractor reads it, or why it has none."""
    try:
        return _fingerprint_of(work)
    except _UnusableError as error:
        return str(error)
    except AssertionError as error:
        return "NaN" if "NaN" in str(error) else f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001  # whatever a reader raises, for the site's log
        return f"{type(error).__name__}: {error}"


def _fingerprint_of(work: Work) -> CaseFingerprint:
    shape, spacing, intensities, _, relative_size = DatasetFingerprintExtractor.analyze_case(
        work.images,
        work.label,
        lambda: _CheckingReader(work.reader_writer, work.channels, work.labels),
        work.samples,
    )
    if not all(np.all(np.isfinite(channel)) for channel in intensities):
        raise _UnusableError("infinite intensities")
    return CaseFingerprint(
        tuple(float(s) for s in spacing),
        tuple(int(s) for s in shape),
        float(relative_size),
        tuple(Channel.of(c) if len(c) else None for c in intensities),
    )


def analyse_cases(work: Sequence[Work], processes: int) -> Iterator[CaseFingerprint | str]:
    """Yield what :func:`analyse_case` returns for each case, computed in several processes."""
    if processes == 1:
        yield from map(analyse_case, work)
        return
    context = multiprocessing.get_context("spawn")  # as nnU-Net
    with ProcessPoolExecutor(processes, context, initializer=end_with_parent) as pool:
        yield from pool.map(analyse_case, work)
