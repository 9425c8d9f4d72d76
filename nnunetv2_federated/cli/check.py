"""``nnUNetv2_federated_check``: whether a preprocessed dataset agrees with itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import print_checks
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.experiment.choices import Plans, UsualTrainer
from nnunetv2_federated.federation.choice import Choice, Choices, record
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import read_fold

DESCRIPTION = """Show whether folds, cases, patients, segmentations and raw data of a preprocessed
dataset agree. A training checks the same before it begins."""


@record
class CheckChoices(Choices):
    """Choices of ``nnUNetv2_federated_check``."""

    group: ClassVar[str] = "as in nnUNetv2_train"

    dataset: Annotated[str, Choice("id or name of the dataset", "DATASET", positional=True)]
    configuration: Annotated[
        str | None,
        Choice(
            "configuration", "CONFIGURATION", positional=True, unset="all that are preprocessed"
        ),
    ] = None
    fold: Annotated[
        Annotated[int | str, BeforeValidator(read_fold)] | None,
        Choice("fold: 0 to 4, or all", "FOLD", positional=True, unset="each"),
    ] = None
    plans: Plans = "nnUNetPlans"
    trainer: UsualTrainer = None


def command() -> Command[CheckChoices]:
    """Return the command line."""
    parser = build_parser(CheckChoices, "nnUNetv2_federated_check", DESCRIPTION)
    return Command(CheckChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _check(command().parse(argv)))


def _check(choices: CheckChoices) -> None:
    # imported here: torch and nnU-Net take seconds, which --help need not wait for
    from nnunetv2_federated.experiment.dataset_check import (  # noqa: PLC0415
        inspect_configuration,
        preprocessed_configurations,
    )
    from nnunetv2_federated.nnunet.data.dataset import load_dataset  # noqa: PLC0415
    from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders  # noqa: PLC0415

    use_trainer_folders()
    dataset = load_dataset(choices.dataset, choices.plans)
    named = choices.configuration
    bad = []
    for name in [named] if named else preprocessed_configurations(dataset):
        checks = list(inspect_configuration(dataset, name, choices.fold, choices.trainer))
        bad += print_checks(f"{dataset.name} {name}", checks)
    if bad:
        raise SettingsError(f"{dataset.name} does not agree with itself: {', '.join(bad)}")


if __name__ == "__main__":
    main()
