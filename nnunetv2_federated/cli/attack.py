"""``nnUNetv2_federated_attack``: what an attacker learns of patients, tried out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field
from rich.console import Console

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import as_table, say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.experiment.choices import DeviceChoices, Plans, UsualTrainer
from nnunetv2_federated.federation.choice import (
    Allowed,
    Choice,
    Choices,
    Count,
    names_of,
    record,
    spell_flag,
)
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.logs import LONGEST_LINE
from nnunetv2_federated.federation.names import read_fold

if TYPE_CHECKING:
    from nnunetv2_federated.experiment.attacked_model import Target

DESCRIPTION = """Attack the privacy of a site's patients, to see what a promise of differential
privacy is worth. With a dataset: does the finished model tell which patients it was trained on?
With --canaries: train with canaries, and print what they show of epsilon beside what the accountant
says; without a dataset canaries alone, through what clips and adds noise. Nothing leaves this
machine."""

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a number above 0")]


@record
class MembershipChoices(Choices):
    """How a finished model is attacked."""

    group: ClassVar[str] = "membership inference, without --canaries"

    site: Annotated[
        str | None,
        Choice(
            "attack with the cases of one site of a federation on this machine",
            "NAME",
            unset="all",
        ),
    ] = None
    reference: Annotated[
        Path | None,
        Choice(
            "checkpoint of a model that was trained on none of these cases: its losses are "
            "subtracted",
            "FILE",
            unset="none",
        ),
    ] = None
    patches: Annotated[
        Annotated[int, Field(ge=2), Allowed("a whole number of at least 2")],
        Choice("patches of a case that does not fit into one", "N"),
    ] = 8
    output: Annotated[
        Path | None,
        Choice(
            "folder for membership.json and membership.md, or canaries.json and canaries.md",
            "FOLDER",
            flag="-o",
            unset="that of the model's fold; with --canaries nothing is written",
        ),
    ] = None


@record
class CanaryChoices(Choices):
    """A training with canaries."""

    group: ClassVar[str] = "canaries"

    canaries: Annotated[
        Annotated[int, Field(ge=2, le=100_000), Allowed("a whole number from 2 to 100000")] | None,
        Choice("number of canaries, each in the training or not by a coin", "N", unset="none"),
    ] = None
    steps: Annotated[Count, Choice("steps of the training", "N")] = 1
    noise: Annotated[_Positive, Choice("noise multiplier", "SIGMA")] = 1.0
    clip: Annotated[_Positive, Choice("clipping norm", "C")] = 1.0
    probability: Annotated[
        Annotated[float, Field(gt=0, le=1), Allowed("above 0 and at most 1")],
        Choice("probability with which a step draws a patient", "Q"),
    ] = 1.0
    delta: Annotated[
        Annotated[float, Field(gt=0, lt=1), Allowed("above 0 and below 1")],
        Choice("delta of the accounting", "DELTA"),
    ] = 1e-5


@record
class AttackChoices(DeviceChoices, MembershipChoices, CanaryChoices):
    """Choices of ``nnUNetv2_federated_attack``."""

    group: ClassVar[str] = "as in nnUNetv2_train"

    dataset: Annotated[
        str | None, Choice("id or name of the dataset", "DATASET", positional=True, unset="none")
    ] = None
    configuration: Annotated[
        str | None, Choice("configuration", "CONFIGURATION", positional=True, unset="none")
    ] = None
    fold: Annotated[
        Annotated[int | str, BeforeValidator(read_fold)] | None,
        Choice("fold: 0 to 4, or all", "FOLD", positional=True, unset="none"),
    ] = None
    plans: Plans = "nnUNetPlans"
    trainer: UsualTrainer = None


def command() -> Command[AttackChoices]:
    """Return the command line."""
    parser = build_parser(AttackChoices, "nnUNetv2_federated_attack", DESCRIPTION)
    return Command(AttackChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _attack(command().parse(argv)))


def _attack(choices: AttackChoices) -> None:
    _check(choices)
    # imported here: nnU-Net takes a second, which --help need not wait for
    from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders  # noqa: PLC0415

    use_trainer_folders()
    if choices.canaries is None:
        _infer_membership(choices)
    else:
        _audit(choices)


def _check(choices: AttackChoices) -> None:
    """Refuse flags of the attack that was not chosen, and half a target."""
    if choices.canaries is None:
        wrong = choices.chosen & set(names_of(CanaryChoices))
        needed = "needs --canaries, the number of them"
    else:
        wrong = choices.chosen & set(names_of(MembershipChoices)) - {"output"}
        needed = "is of a finished model; leave it out with --canaries"
    if wrong:
        flag = spell_flag(AttackChoices, min(wrong))
        raise SettingsError(f"{flag} {getattr(choices, min(wrong))}: {needed}.")
    target = (choices.dataset, choices.configuration, choices.fold)
    if None in target and not (choices.dataset is None and choices.canaries):
        raise SettingsError(
            "give DATASET CONFIGURATION FOLD of a finished model or of a training with canaries, "
            "or --canaries N alone: see --help."
        )


def _infer_membership(choices: AttackChoices) -> None:
    # imported here: torch and nnU-Net take seconds, which --help need not wait for
    from nnunetv2_federated.experiment.attack import (  # noqa: PLC0415
        MembershipSettings,
        infer_membership,
        write_membership,
    )
    from nnunetv2_federated.report.privacy_attacks import (  # noqa: PLC0415
        membership_rows,
        membership_verdict,
    )

    settings = MembershipSettings(choices.site, choices.reference, (choices.patches + 1) // 2)
    found, model = infer_membership(_target(choices), settings)
    _show(membership_rows({model.name: found}), membership_verdict(found))
    say(f"wrote {write_membership(found, model, choices.output)}")


def _audit(choices: AttackChoices) -> None:
    # imported here, as above
    from nnunetv2_federated.experiment.canary_audit import (  # noqa: PLC0415
        CanarySettings,
        audit_release,
        audit_training,
        write_audit,
    )
    from nnunetv2_federated.report.privacy_attacks import (  # noqa: PLC0415
        canary_rows,
        canary_verdict,
    )

    settings = CanarySettings(
        canaries=choices.canaries or 0,
        steps=choices.steps,
        noise=choices.noise,
        clip=choices.clip,
        probability=choices.probability,
        delta=choices.delta,
    )
    found = (
        audit_release(settings)
        if choices.dataset is None
        else audit_training(_target(choices), settings)
    )
    _show(canary_rows(found), canary_verdict(found))
    if choices.output is not None:
        say(f"wrote {write_audit(found, choices.output)}")
    if found.contradicts:
        raise FederationError("what is promised is not kept: see above.")


def _target(choices: AttackChoices) -> Target:
    from nnunetv2_federated.experiment.attacked_model import Target  # noqa: PLC0415  # as above

    return Target(
        dataset=choices.dataset or "",
        configuration=choices.configuration or "",
        fold=0 if choices.fold is None else choices.fold,
        trainer=choices.trainer,
        plans=choices.plans,
        device=choices.device,
    )


def _show(table: tuple[list[str], list[list[str]]], verdict: str) -> None:
    """Print a table of one row as a line for each of its columns, then the verdict."""
    header, rows = table
    shown = as_table("", ("", ""), zip(header, rows[0], strict=True), longest=LONGEST_LINE)
    shown.show_header = False
    Console(highlight=False).print(shown)
    say(verdict)


if __name__ == "__main__":
    main()
