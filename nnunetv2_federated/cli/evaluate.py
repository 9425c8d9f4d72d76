"""``nnUNetv2_federated_evaluate``: a trained model at every site, without training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.experiment.evaluate_choices import EvaluateChoices

DESCRIPTION = """Evaluate any trained nnU-Net, or two of them on the same cases, at every site: a
result folder, one fold of it, or an exported zip. Each site predicts its own cases and tells count,
mean and variance of each metric over its patients, never the value of one. Writes summary.json as
nnU-Net does, evaluation.json and a report. With --server the sites are hospitals, which approve the
model by its hash."""


def command() -> Command[EvaluateChoices]:
    """Return the command line."""
    parser = build_parser(EvaluateChoices, "nnUNetv2_federated_evaluate", DESCRIPTION)
    return Command(EvaluateChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _evaluate(command().parse(argv)))


def _evaluate(choices: EvaluateChoices) -> None:
    # imported here: torch and nnU-Net take seconds, which --help need not wait for
    from nnunetv2_federated.experiment.evaluate import evaluate  # noqa: PLC0415

    def tell(text: str) -> None:
        if not choices.quiet:
            say(text)

    with stopping_as_interrupt() if choices.server else contextlib.nullcontext():
        result = evaluate(choices, tell)
    means: Mapping[str, float | None] = result.summary["foreground_mean"]
    shown = ", ".join(f"{name} {'-' if v is None else f'{v:.4f}'}" for name, v in means.items())
    what = "mean over labels" if result.summary["mean"] else "mean over sites, weighted by cases"
    tell(f"{what}: {shown}")
    tell(f"wrote {result.report}, summary.json and evaluation.json beside it")


if __name__ == "__main__":
    main()
