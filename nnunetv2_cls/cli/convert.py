"""``nnUNetv2_cls_convert``: make an nnU-Net raw dataset with a class for every image."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_cls.cli._run import run_command
from nnunetv2_cls.conversion.class_folders import read_class_folders
from nnunetv2_cls.conversion.kermany import read_kermany
from nnunetv2_cls.conversion.medmnist import read_medmnist
from nnunetv2_cls.conversion.patients import with_patients
from nnunetv2_cls.conversion.rsna import MAPPING, read_rsna
from nnunetv2_cls.conversion.source import Case, Source
from nnunetv2_cls.conversion.writer import write_dataset


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_cls_convert",
        description="Make an nnU-Net raw dataset in which every image has a class: images, label "
        "maps, labelsTr.json, cases.csv, and folds that keep a patient's images together.",
    )
    formats = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)

    def add(
        name: str, what: str, path: str, holds: str, read: Callable[[argparse.Namespace], Source]
    ) -> argparse.ArgumentParser:
        command = formats.add_parser(name, help=what, description=f"Convert {what}.")
        command.add_argument("path", type=Path, metavar=path, help=holds)
        command.add_argument("dataset_id", type=int, metavar="DATASET_ID", help="1 to 999")
        command.add_argument("--name", help="of the dataset, behind DatasetXXX_")
        command.add_argument("--overwrite", action="store_true", help="replace such a dataset")
        command.add_argument(
            "--patients",
            type=Path,
            metavar="TABLE",
            help="whose images are kept on one side of every fold: CSV with columns file (or "
            f"case) and patient{', or ' + MAPPING if name == 'rsna' else ''}",
        )
        command.add_argument(
            "--channel",
            metavar="NAME",
            help="of every channel, which nnU-Net normalises by name: CT, nonorm, rescale_to_0_1, "
            "rgb_to_0_1 (colour), or a z-score of each image under any other name (greyscale)",
        )
        command.set_defaults(read=read)
        return command

    command = add(
        "kermany",
        "Kermany chest X-rays as on Kaggle or as first published",
        "FOLDER",
        "chest_xray or its parent",
        lambda options: read_kermany(options.path, options.size),
    )
    command.add_argument("--size", type=int, metavar="N", help="shrink images to N x N pixels")
    command = add(
        "rsna",
        "the RSNA Pneumonia Detection Challenge, with its boxes as label maps",
        "FOLDER",
        "with stage2_train_metadata.csv and Training/Images, or as the challenge publishes it",
        lambda options: read_rsna(options.path, detailed=options.classes == 3),
    )
    command.add_argument(
        "--classes",
        type=int,
        choices=(2, 3),
        default=2,
        help="2 (default): no opacity, pneumonia; 3: normal, not normal, lung opacity",
    )
    command = add(
        "folder",
        "one folder of PNG, JPEG, TIFF, BMP or DICOM images for each class",
        "FOLDER",
        "with a sub-folder for each class",
        lambda options: read_class_folders(
            options.path, classes=options.classes, test=options.test, grey=options.grey
        ),
    )
    command.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="all classes of the federation, by index; some may have no sub-folder here",
    )
    command.add_argument(
        "--test", type=Path, metavar="FOLDER", help="test images, with the same sub-folders"
    )
    command.add_argument("--grey", action="store_true", help="make colour images greyscale")
    command = add(
        "npz",
        "a MedMNIST archive",
        "FILE",
        "with train_images, train_labels, val_images, ...",
        lambda options: read_medmnist(options.path, options.classes),
    )
    command.add_argument(
        "--classes", nargs="+", metavar="NAME", help="all, by label (class_0, class_1, ...)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(argv)
    run_command(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    source: Source = options.read(options)
    if options.patients:
        source = with_patients(source, options.patients)
    if options.channel:
        source = replace(source, channels=(options.channel,) * len(source.channels))
    warnings: list[str] = []
    folder = write_dataset(
        source,
        options.dataset_id,
        name=options.name,
        overwrite=options.overwrite,
        progress=lambda cases: tqdm(cases, "cases", disable=None),
        warn=warnings.append,
    )
    print(folder)
    print(f"training: {_count(source.training, source.classes)}")
    if source.test:
        print(f"test: {_count(source.test, source.classes)}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for stale in _preprocessed(options.dataset_id):
        print(f"remove {stale} first: it is of an earlier dataset with this id")
    print("next:")
    print(
        f"  nnUNetv2_plan_and_preprocess -d {options.dataset_id} -c 2d --verify_dataset_integrity"
    )
    print(f"  nnUNetv2_cls_plan {options.dataset_id}")


def _count(cases: Iterable[Case], classes: Sequence[str]) -> str:
    counts = Counter(case.klass for case in cases)
    known = [f"{counts[klass]} {klass}" for klass in classes if counts[klass]]
    return ", ".join([*known, *([f"{counts[None]} without class"] if counts[None] else [])])


def _preprocessed(dataset_id: int) -> list[Path]:
    folder = nnUNet_preprocessed.get()
    return sorted(Path(folder).glob(f"Dataset{dataset_id:03d}_*")) if folder else []


if __name__ == "__main__":
    main()
