"""``nnUNetv2_cls_convert``: make an nnU-Net raw dataset with a class for every image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

import nnunetv2_cls
from nnunetv2_cls.cli._run import run_command
from nnunetv2_cls.defaults import MAPPING, Kind


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_cls_convert",
        description="Make an nnU-Net raw dataset in which every image has a class: images, label "
        "maps, labelsTr.json, cases.csv, and folds that keep a patient's images together.",
    )
    formats = parser.add_subparsers(title="formats", metavar="FORMAT", dest="kind", required=True)

    def add(kind: Kind, what: str, path: str, content: str) -> Callable[..., argparse.Action]:
        command = formats.add_parser(kind, help=what, description=f"Convert {what}.")
        _add_common(command, kind, path, content)
        return command.add_argument

    option = add(
        "kermany",
        "Kermany chest X-rays as on Kaggle or as first published",
        "FOLDER",
        "chest_xray or its parent",
    )
    option("--size", type=int, metavar="N", help="shrink images to N x N pixels")
    option = add(
        "rsna",
        "the RSNA Pneumonia Detection Challenge, with its boxes as label maps",
        "FOLDER",
        "with stage2_train_metadata.csv and Training/Images, or as the challenge publishes it",
    )
    option(
        "--classes",
        dest="number_of_classes",
        type=int,
        choices=(2, 3),
        help="2: no opacity, pneumonia; 3: normal, not normal, lung opacity (default %(default)s)",
    )
    option = add(
        "folder",
        "one folder of PNG, JPEG, TIFF, BMP or DICOM images for each class",
        "FOLDER",
        "with a sub-folder for each class",
    )
    option(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="all classes of the federation, by index; some may have no sub-folder here",
    )
    option("--test", type=Path, metavar="FOLDER", help="test images, with the same sub-folders")
    option("--grey", action="store_true", help="make colour images greyscale")
    option = add(
        "npz", "a MedMNIST archive", "FILE", "with train_images, train_labels, val_images, ..."
    )
    option(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="all class names, by label (default: class_0, class_1, ...)",
    )
    return parser


def _add_common(command: argparse.ArgumentParser, kind: Kind, path: str, content: str) -> None:
    """Add the options of every format, and defaults for those that this one does not have."""
    command.set_defaults(size=None, number_of_classes=2, classes=None, test=None, grey=False)
    command.add_argument("path", type=Path, metavar=path, help=content)
    command.add_argument("dataset_id", type=int, metavar="DATASET_ID", help="1 to 999")
    command.add_argument("--name", help="name of the dataset, behind DatasetXXX_")
    command.add_argument(
        "--overwrite", action="store_true", help="replace a dataset of this id and name"
    )
    command.add_argument(
        "--patients",
        type=Path,
        metavar="TABLE",
        help="patients, whose images stay on one side of every fold: CSV with columns file (or "
        f"case) and patient{', or ' + MAPPING if kind == 'rsna' else ''}",
    )
    command.add_argument(
        "--channel",
        metavar="NAME",
        help="name of every channel, by which nnU-Net normalises: CT, nonorm, rescale_to_0_1, "
        "rgb_to_0_1 (colour), or a z-score of each image under any other name (greyscale)",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    converted = nnunetv2_cls.convert(
        options.kind,
        options.path,
        options.dataset_id,
        name=options.name,
        overwrite=options.overwrite,
        patients=options.patients,
        channel=options.channel,
        size=options.size,
        detailed=options.number_of_classes == 3,
        classes=options.classes,
        test=options.test,
        grey=options.grey,
        progress=lambda cases: tqdm(cases, "cases", disable=None),
    )
    print(converted.folder)
    print(f"training: {_listed(converted.training)}")
    if converted.test:
        print(f"test: {_listed(converted.test)}")
    for warning in converted.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for folder in converted.outdated:
        print(f"remove {folder} first: it is of an earlier dataset with this id")
    print("next:")
    print(
        f"  nnUNetv2_plan_and_preprocess -d {options.dataset_id} -c 2d --verify_dataset_integrity"
    )
    print(f"  nnUNetv2_cls_plan {options.dataset_id}")


def _listed(counts: Mapping[str | None, int]) -> str:
    return ", ".join(f"{count} {klass or 'without class'}" for klass, count in counts.items())


if __name__ == "__main__":
    main()
