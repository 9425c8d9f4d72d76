"""``nnUNetv2_federated_privacy``: how much noise a budget needs, or what a noise costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.federation.choice import Allowed, Choice, Choices, Count, record
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.privacy import PrivacyChoices
from nnunetv2_federated.federation.privacy_budget import show_epsilon
from nnunetv2_federated.federation.settings import FederationSettings

if TYPE_CHECKING:
    from nnunetv2_federated.nnunet.privacy.calculator import Promise

DESCRIPTION = """Calculate the noise that keeps the patients of a site within an epsilon, or the
epsilon of a noise, before anything is trained."""

_USUAL, _USUAL_PRIVACY = FederationSettings(), PrivacyChoices()
_POINTS = 12
"""Points of the curve, at most, besides the first round."""

ADAPTS, LEARNS, HOPELESS = 1.15, 7.2, 50.0
"""Lengths of the noise with which a training was seen to go well, or to go at all; and where it is
hopeless. They are in units of the longest mean gradient."""


@record
class CalculatorChoices(Choices):
    """Choices of ``nnUNetv2_federated_privacy``."""

    group: ClassVar[str] = "privacy"

    patients: Annotated[
        Annotated[int, Field(ge=2), Allowed("a whole number of at least 2")],
        Choice("training patients of the site", "N"),
    ]
    epsilon: Annotated[
        Annotated[float, Field(gt=0, le=500), Allowed("above 0 and at most 500")] | None,
        Choice("budget to find the noise for", "X", unset="none"),
    ] = None
    noise: Annotated[
        Annotated[float, Field(gt=0, le=1e6), Allowed("above 0 and at most 1e6")] | None,
        Choice(
            "noise to find the epsilon of, as a multiple of the clip, in place of --epsilon",
            "X",
            unset="none",
        ),
    ] = None
    rounds: Annotated[Count, Choice("rounds of the federation", "N")] = _USUAL.rounds
    local_epochs: Annotated[Count, Choice("nnU-Net epochs of a site in a round", "N")] = (
        _USUAL.local_epochs
    )
    iterations: Annotated[
        Count, Choice("training iterations of an epoch; nnU-Net's trainers have 250", "N")
    ] = 250
    batch: Annotated[Count, Choice("patients of an iteration on average", "N")] = (
        _USUAL_PRIVACY.dp_batch
    )
    delta: Annotated[
        Annotated[float, Field(gt=0, lt=1), Allowed("above 0 and below 1")] | None,
        Choice("delta, below 1 / patients", "X", unset="patients ** -1.1"),
    ] = None
    parameters: Annotated[
        Count | None,
        Choice("parameters that are trained: say how long the noise is", "N", unset="none"),
    ] = None
    output: Annotated[
        Path | None, Choice("draw epsilon by round into this PNG", "FILE", flag="-o", unset="none")
    ] = None

    def __post_init__(self) -> None:
        if self.epsilon is None and self.noise is None:
            raise SettingsError(
                "--epsilon or --noise is missing: give the epsilon to find the noise for, or the "
                "noise to find the epsilon of."
            )
        if self.epsilon is not None and self.noise is not None:
            raise SettingsError(
                f"--epsilon {self.epsilon:g} --noise {self.noise:g}: each follows from the other; "
                "give one of them."
            )
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise SettingsError(f"-o {self.output}: there is no folder {self.output.parent}.")

    @property
    def iterations_of_round(self) -> int:
        """Iterations of a site in a round."""
        return self.local_epochs * self.iterations


def command() -> Command[CalculatorChoices]:
    """Return the command line."""
    parser = build_parser(CalculatorChoices, "nnUNetv2_federated_privacy", DESCRIPTION)
    return Command(CalculatorChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _calculate(command().parse(argv)))


def _calculate(choices: CalculatorChoices) -> None:
    # heavy: not for --help
    from nnunetv2_federated.nnunet.privacy.accounting import ACCOUNTANT  # noqa: PLC0415
    from nnunetv2_federated.nnunet.privacy.calculator import promise  # noqa: PLC0415

    found = promise(
        choices.patients,
        choices.batch,
        choices.rounds * choices.iterations_of_round,
        epsilon=choices.epsilon,
        noise=choices.noise,
        delta=choices.delta,
    )
    for line in describe(choices, found):
        say(line)
    say(f"computed by {ACCOUNTANT}")
    for warning in warnings(choices, found):
        print(f"warning: {warning}", file=sys.stderr)
    if choices.output is not None:
        _draw(choices, found, choices.output)
        say(f"wrote {choices.output}")


def describe(choices: CalculatorChoices, found: Promise) -> list[str]:
    """Say what was calculated, line by line."""
    mechanism = found.mechanism
    lines = [
        f"iterations: {mechanism.steps} ({choices.rounds} rounds of {choices.local_epochs} x "
        f"{choices.iterations}); each draws {found.batch} of {found.patients} patients on "
        f"average, each patient with probability {mechanism.probability:.3g}",
        f"delta: {found.delta:.3g} (1 / patients is {1 / choices.patients:.3g})",
        f"noise multiplier: {mechanism.noise_multiplier:.4g} times the clip"
        + (f", for epsilon {choices.epsilon:g}" if choices.epsilon is not None else ""),
        f"epsilon: {show_epsilon(found.epsilon)} if a patient is added or removed, which is the "
        f"promise; {show_epsilon(found.epsilon_replace_one)} if one is replaced by another",
    ]
    if choices.parameters is not None:
        norm = found.noise_norm(choices.parameters)
        lines.append(
            f"noise of an iteration: {_times(norm)} as long as the mean gradient can be "
            f"({choices.parameters} parameters); {judge(norm)}"
        )
    return lines


def judge(norm: float) -> str:
    """Say what trainings with such a length of the noise were seen to do."""
    if norm <= ADAPTS:
        return f"with {ADAPTS:g} a model was seen to adapt well"
    if norm <= LEARNS:
        return f"with {LEARNS:g} a small network was seen to learn"
    return f"{LEARNS:g} is the most with which a network was seen to learn"


def warnings(choices: CalculatorChoices, found: Promise) -> list[str]:
    """Say what cannot be meant so, or will not work."""
    said = []
    if choices.batch > choices.patients:
        said.append(
            f"--batch {choices.batch} is more than the {choices.patients} patients: every "
            "iteration takes all of them (the probability is capped at 1), and chance hides nobody"
        )
    if found.epsilon > 100:
        said.append(
            f"epsilon {show_epsilon(found.epsilon)} protects nobody: more noise, fewer rounds or "
            "iterations, or more patients"
        )
    if choices.parameters is not None and found.noise_norm(choices.parameters) >= HOPELESS:
        said.append(
            f"the noise is {_times(found.noise_norm(choices.parameters))} as long as the mean "
            f"gradient can be; from {HOPELESS:g} on nothing useful can be learned: train fewer "
            "parameters (--dp-trainable), with fewer iterations or a larger batch, or allow a "
            "larger epsilon"
        )
    return said


def _times(norm: float) -> str:
    return f"{norm:.3g} times" if norm < 1000 else f"{norm:.0f} times"


def _draw(choices: CalculatorChoices, found: Promise, path: Path) -> None:
    # matplotlib is heavy
    from nnunetv2_federated.nnunet.privacy.calculator import by_steps  # noqa: PLC0415
    from nnunetv2_federated.report.privacy_curve import plot_privacy_curve  # noqa: PLC0415

    parts = [max(1, round(choices.rounds * part / _POINTS)) for part in range(_POINTS + 1)]
    rounds = sorted(set(parts))
    points = by_steps(found, [number * choices.iterations_of_round for number in rounds])
    plot_privacy_curve(
        rounds,
        {
            "a patient is added or removed": [point.epsilon for point in points],
            "one is replaced by another": [point.epsilon_replace_one for point in points],
        },
        path,
        f"{found.patients} patients, {found.batch} in an iteration, noise "
        f"{found.mechanism.noise_multiplier:.4g}, delta {found.delta:.3g}",
    )


if __name__ == "__main__":
    main()
