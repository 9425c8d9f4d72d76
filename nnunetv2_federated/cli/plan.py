"""``nnUNetv2_plan_and_preprocess_federated``: one plan for sites that show no image."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.experiment.choices import PlanChoices

DESCRIPTION = """Plan once for several datasets, each a site, from fingerprints that give no patient
away, and preprocess each with that plan. Train then with nnUNetv2_train_federated
--site-datasets."""


def command() -> Command[PlanChoices]:
    """Return the command line; flags of nnUNetv2_plan_and_preprocess keep their names."""
    parser = build_parser(PlanChoices, "nnUNetv2_plan_and_preprocess_federated", DESCRIPTION)
    return Command(PlanChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _plan(command().parse(argv)))


def _plan(choices: PlanChoices) -> None:
    from nnunetv2_federated.experiment.plan import plan, server_dataset  # noqa: PLC0415  # heavy

    with stopping_as_interrupt() if choices.server else contextlib.nullcontext():
        task = plan(choices, say)
    sites = f"--site-datasets {' '.join(choices.datasets)}"
    if choices.server:
        sites = f"--server {choices.server} {server_dataset(choices.datasets)}"
    name = task.plans["plans_name"]
    print(
        f"now train with: nnUNetv2_train_federated {sites} {choices.configurations[0]} 0"
        + (f" -p {name}" if name != "nnUNetPlans" else "")
    )


if __name__ == "__main__":
    main()
