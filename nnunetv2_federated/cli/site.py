"""``nnUNetv2_federated_site``: a hospital's side of a federation over a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.cli.site_choices import SiteCommandChoices
from nnunetv2_federated.flower.deployment.site.new_key import make_key
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file

DESCRIPTION = """Take part in federations with a dataset of this machine, until stopped. One process
keeps the trainer from round to round; it opens no port to the network and runs no code that was
sent to it."""

_DECISIONS = ("approve", "withdraw", "rewind")


def command() -> Command[SiteCommandChoices]:
    """Return the command line."""
    parser = build_parser(SiteCommandChoices, "nnUNetv2_federated_site", DESCRIPTION)
    return Command(SiteCommandChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _site(command().parse(argv)))


def _site(choices: SiteCommandChoices) -> None:
    if choices.new_key is not None:
        _new_key(choices.new_key, choices.folder)
        return
    _ = choices.dataset_name  # a missing one is said before the file is read
    settings = read_site_file(choices.site_file)
    if choices.chosen.intersection(_DECISIONS):
        from nnunetv2_federated.cli import site_decisions  # noqa: PLC0415  # as below

        site_decisions.decide(settings, choices)
        return
    # imported here: torch, nnU-Net and Flower take seconds, which a decision need not wait for,
    # nor a worker that nnU-Net starts and that imports this module anew
    from nnunetv2_federated.cli import site_process  # noqa: PLC0415
    from nnunetv2_federated.nnunet.process import prepare_process  # noqa: PLC0415

    prepare_process()
    if choices.check is not None:
        site_process.check(settings, choices)
    else:
        site_process.take_part(settings, choices)


def _new_key(name: str, folder: Path | None) -> None:
    made = make_key(name, folder or Path(name))
    print(f"made {made.private}: it stays on this machine, send it to nobody")
    print(f"made {made.public}: send it to the coordinator, who answers with a bundle")
    print(f"the coordinator must see the same fingerprint, compare it by telephone:\n{made.mark}")
    print(f"then put the bundle's files beside the key, in {made.private.parent}")


if __name__ == "__main__":
    main()
