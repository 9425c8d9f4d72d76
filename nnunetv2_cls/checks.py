"""Check, before a training begins, all that it and its validation will need."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import (
    TEST_LABELS_FILE,
    ImageLabels,
    preprocessed_labels,
    read_classes,
    read_json,
    read_test_labels,
    some,
)
from nnunetv2_cls.preprocess import ExpectedImages, check_images, num_channels, raw_cases
from nnunetv2_cls.splits import (
    SPLITS_FILE,
    check_fold,
    patients_of,
    read_splits,
    unused_cases,
)

logger = logging.getLogger(__name__)

_OPENED = 100
"""Number of preprocessed cases that are opened, evenly spread over all."""


def check_training(
    plans: dict[str, Any], configuration: str, fold: int | str, dataset_json: Mapping[str, Any]
) -> ImageLabels:
    """Check all that a training needs, and return the labels of the preprocessed cases.

    Checked are labels, cases, folds and patients, channels and dimensions, and the test cases with
    their images. A federation's server, which only keeps a model, has no preprocessed folder: there
    nothing is checked, and no case has a label.

    Parameters
    ----------
    plans
        Content of the plans file.
    configuration
        Configuration to train, such as ``2d_cls``.
    fold
        Fold to train, or ``all``.
    dataset_json
        Content of ``dataset.json``.

    Raises
    ------
    ClsError
        Naming what does not agree.
    """
    manager = PlansManager(plans)
    name = plans["dataset_name"]
    base = Path(nnUNet_preprocessed.require()) / name
    folder = base / manager.get_configuration(configuration).data_identifier
    if not folder.is_dir():
        return ImageLabels(read_classes(dataset_json), {})
    check_dimensions(plans, configuration)
    labels = preprocessed_labels(name, dataset_json)
    cases = sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
    labels.check(cases)
    if absent := labels.absent:
        _warn(
            f"no case of {name} is of class {', '.join(absent)}: it is learned from other sites "
            "only, if any has it"
        )
    if isinstance(fold, int) and (base / SPLITS_FILE).is_file():
        splits = read_splits(base / SPLITS_FILE)
        check_fold(splits, fold, cases, patients_of(name), base / SPLITS_FILE)
        if left := unused_cases(splits, cases, fold):
            _warn(
                f"{len(left)} of {len(cases)} cases of {name} are in no part of fold {fold} "
                f"({some(left)}): they are not used"
            )
    flat = len(manager.get_configuration(configuration).patch_size) == 2
    _check_preprocessed(folder, folder.stat().st_mtime_ns, flat, num_channels(dataset_json))
    labelled_tests(plans, configuration, dataset_json, labels.classes)
    return labels


@lru_cache(maxsize=64)  # a federation builds a trainer for each of its sites
def _warn(message: str) -> None:
    """Log a warning once, whatever the number of trainers."""
    logger.warning("%s", message)


def check_dimensions(plans: Mapping[str, Any], configuration: str) -> None:
    """Refuse a 2D configuration for volumes, of which a classifier would see one slice.

    Raises
    ------
    ClsError
        Naming the configuration to use.
    """
    if len(PlansManager(dict(plans)).get_configuration(configuration).patch_size) == 3:
        return
    name = plans["dataset_name"]
    axis = plans["transpose_forward"][0]
    fingerprint = Path(nnUNet_preprocessed.require()) / name / "dataset_fingerprint.json"
    shapes = read_json(fingerprint)["shapes_after_crop"] if fingerprint.is_file() else []
    slices = [shape[axis] for shape in shapes]
    slices.append(plans["original_median_shape_after_transp"][0])
    if max(slices) > 1:
        raise _one_slice(name, f"up to {max(slices):g} slices")


def _one_slice(dataset_name: str, what: str) -> ClsError:
    return ClsError(
        f"{dataset_name} holds volumes ({what}), of which a 2D configuration sees one slice: use "
        f"nnUNetv2_cls_plan {dataset_name} -c 3d_fullres, planned by nnUNetv2_plan_and_preprocess."
    )


@lru_cache(maxsize=64)
def _check_preprocessed(folder: Path, _changed: int, flat: bool, channels: int) -> None:
    """Check that all preprocessed cases are complete, and open some of them."""
    dataset_class = infer_dataset_class(str(folder))
    cases = sorted(dataset_class.get_identifiers(str(folder)))
    _check_files(folder, cases, blosc2=issubclass(dataset_class, nnUNetDatasetBlosc2))
    opened = cases[:: max(1, len(cases) // _OPENED)]
    dataset = dataset_class(str(folder), list(opened))
    properties = {
        case: _check_case(dataset, folder, case, flat=flat, channels=channels) for case in opened
    }
    not_left_right = [case for case in opened if not (flat or x_is_left_right(properties[case]))]
    if not_left_right:
        logger.warning(
            "the x axis of %d of %d volumes that were checked is not left-right (%s): mirroring "
            "flips another axis; nnUNetTrainerClsNoMirroring does not mirror",
            len(not_left_right), len(opened), some(not_left_right),
        )  # fmt: skip


def _check_files(folder: Path, cases: Sequence[str], *, blosc2: bool) -> None:
    """Refuse a folder in which a case lacks one of its files."""
    present = {path.name for path in folder.iterdir()}
    ends = (".b2nd", "_seg.b2nd", ".pkl") if blosc2 else (".npz", ".pkl")
    if missing := [f"{c}{end}" for c in cases for end in ends if f"{c}{end}" not in present]:
        raise ClsError(
            f"{folder} lacks {len(missing)} files ({some(missing)}): run nnUNetv2_preprocess again."
        )


def _check_case(
    dataset: Any,  # noqa: ANN401  # nnU-Net's dataset class
    folder: Path,
    case: str,
    *,
    flat: bool,
    channels: int,
) -> Mapping[str, Any]:
    """Open a case, check its channels and slices, and return its properties."""
    try:
        image, *_, properties = dataset.load_case(case)
    except Exception as error:
        raise ClsError(
            f"{folder}: case {case} cannot be read ({type(error).__name__}): run "
            "nnUNetv2_preprocess again."
        ) from error
    if image.shape[0] != channels:
        raise ClsError(
            f"{folder}: case {case} has {image.shape[0]} channels, channel_names of "
            f"dataset.json {channels}: fix them, then plan and preprocess again."
        )
    if flat and image.shape[1] != 1:
        raise _one_slice(folder.parent.name, f"{case} has {image.shape[1]} slices")
    of_image: Mapping[str, Any] = properties
    return of_image


def x_is_left_right(properties: Mapping[str, Any]) -> bool:
    """Return whether the first axis of an image file runs along the patient's x, more or less."""
    direction: Sequence[float] = properties.get("sitk_stuff", {}).get("direction", ())
    if len(direction) != 9:
        return True  # the file does not say
    along = [
        abs(direction[row * 3]) for row in range(3)
    ]  # first column: direction of the file's x axis
    return along[0] == max(along)


def labelled_tests(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    classes: tuple[str, ...],
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Find the labelled test cases in ``nnUNet_raw``, if it has any.

    Returns
    -------
    tuple
        Class index of each case, and files of each case.

    Raises
    ------
    ClsError
        If a case has no image, or its image has other channels or dimensions than the
        configuration takes.
    """
    name = plans["dataset_name"]
    labels = read_test_labels(name, classes)
    if labels is None:
        return {}, {}
    folder = Path(nnUNet_raw.require()) / name / "imagesTs"
    ending = dataset_json["file_ending"]
    images = raw_cases(folder, ending) if folder.is_dir() else {}
    if without := set(labels.of_case) - set(images):
        raise ClsError(
            f"{TEST_LABELS_FILE} of {name} has {len(without)} cases without image "
            f"({some(without)}): a case X is imagesTs/X_0000{ending}; add the "
            "images, or remove the labels."
        )
    manager = PlansManager(plans)
    expected = ExpectedImages.of(manager, manager.get_configuration(configuration), dataset_json)
    changed = folder.stat().st_mtime_ns
    _check_test_images(folder, changed, tuple(sorted(labels.of_case)), ending, expected)
    return dict(labels.of_case), {case: images[case] for case in labels.of_case}


@lru_cache(maxsize=64)
def _check_test_images(
    folder: Path, _changed: int, labelled: tuple[str, ...], ending: str, expected: ExpectedImages
) -> None:
    images = raw_cases(folder, ending)
    files = {Path(file).name for case in labelled for file in images[case]}
    without = [p.name for p in folder.iterdir() if p.name not in files and p.name[0] != "."]
    if without:
        logger.warning(
            "%d of %d files in %s are of no case in %s (%s): they are not judged",
            len(without), len(files) + len(without), folder, TEST_LABELS_FILE, some(without),
        )  # fmt: skip
    where = f"imagesTs of {folder.parent.name}"
    if damaged := check_images({case: images[case] for case in labelled}, expected, where):
        raise ClsError(
            f"{where}: {len(damaged)} cannot be read ({some(damaged)}): replace or remove them."
        )
