"""``nnUNetv2_federated_check``: whether a preprocessed dataset agrees with itself."""

from __future__ import annotations

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Sequence

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.cli.console import print_findings
from nnunetv2_federated.cli.options import fold_number, parse, run_command
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.finding import look
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import Dataset, check_configuration, load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_of_site, read_splits
from nnunetv2_federated.nnunet.data.integrity import inspect
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds, federated_trainer


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_check",
        description="Show whether folds, cases, patients, segmentations and raw data of a "
        "preprocessed dataset agree. A training looks at the same before it begins.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="dataset id or name")
    parser.add_argument(
        "configuration",
        nargs="?",
        metavar="CONFIGURATION",
        help="as of nnUNetv2_train (default: all that are preprocessed)",
    )
    parser.add_argument("fold", nargs="?", metavar="FOLD", help="0 to 4, or all (default: each)")
    parser.add_argument("-p", dest="plans", metavar="PLANS", help="plans identifier (nnUNetPlans)")
    parser.add_argument(
        "-tr",
        dest="trainer",
        metavar="TRAINER",
        help="trainer (nnUNetTrainerFederated; of a classification nnUNetTrainerCls)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _check(parse(parser, argv)))


def _check(options: Options) -> None:
    use_trainer_folders()
    dataset = load_dataset(options["dataset"], options.get("plans", "nnUNetPlans"))
    bad = []
    for configuration in _configurations(dataset, options.get("configuration")):
        usual = usual_trainer(dataset, configuration)
        trainer = federated_trainer(options.get("trainer", usual))
        folds = _folds(dataset, configuration, options.get("fold"))
        segmentation = validates_segmentations(trainer)
        findings = [
            *inspect(dataset, configuration, folds, segmentation=segmentation),
            look("trainer", functools.partial(_build, dataset, configuration, trainer)),
        ]
        bad += print_findings(f"{dataset.name} {configuration}", findings)
    if bad:
        raise SettingsError(f"{dataset.name} does not agree with itself: {', '.join(bad)}")


def _configurations(dataset: Dataset, wanted: str | None) -> list[str]:
    if wanted is not None:
        check_configuration(dataset, wanted)
        return [wanted]
    plans = PlansManager(dataset.plans)
    found = [
        name
        for name in dataset.plans["configurations"]
        if (dataset.folder / str(plans.get_configuration(name).data_identifier)).is_dir()
    ]
    if not found:
        raise SettingsError(f"{dataset.name} is not preprocessed: run nnUNetv2_preprocess.")
    return found


def usual_trainer(dataset: Dataset, configuration: str) -> str:
    """Return the trainer that a configuration is for, by its network."""
    manager = PlansManager(dataset.plans).get_configuration(configuration)
    classifies = str(manager.network_arch_class_name).startswith("nnunetv2_cls.")
    return "nnUNetTrainerCls" if classifies else "nnUNetTrainerFederated"


def _folds(dataset: Dataset, configuration: str, wanted: str | None) -> list[int | str]:
    """Return the fold that is wanted, or all there are; the first where that is not known."""
    if wanted is not None:
        return [fold_number(wanted)]
    with contextlib.suppress(SettingsError):  # a look at the first says why
        fold_of_site(dataset, configuration, 0)
        return list(range(len(read_splits(dataset))))
    return [0]


def _build(dataset: Dataset, configuration: str, trainer: type[FederatedRounds]) -> str:
    """Build the trainer, which may look at more, and leave nothing behind."""
    run = Run(
        dataset=dataset.name,
        configuration=configuration,
        fold="all",
        trainer=trainer.__name__,
        plans_name=dataset.plans["plans_name"],
        device="cpu",
        settings=FederationSettings(),
        sites=(),
    )
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_results=scratch), quiet():
        build_trainer(run, dataset, trainer)
    return f"{trainer.__name__} can be built"


if __name__ == "__main__":
    main()
