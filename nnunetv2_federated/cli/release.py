"""``nnUNetv2_federated_release``: a finished model to hand to a hospital, or one to check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.experiment.release_choices import ReleaseChoices, VerifyChoices
from nnunetv2_federated.federation.choice import names_of, spell_flag
from nnunetv2_federated.federation.errors import SettingsError

DESCRIPTION = """Write trained folds as one zip or folder to hand to a hospital: nnU-Net's own
export, a MONAI bundle, ONNX of a classifier, a model card and a hash of each file. Nothing in it
names a case. With --verify: check such a release."""


def command() -> Command[ReleaseChoices]:
    """Return the command line."""
    parser = build_parser(ReleaseChoices, "nnUNetv2_federated_release", DESCRIPTION)
    return Command(ReleaseChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _run(command().parse(argv)))


def _run(choices: ReleaseChoices) -> None:
    release = choices.verify
    if release is None:
        if choices.key is not None:
            raise SettingsError(f"--key {choices.key}: needs --verify, the release to check.")
        _release(choices)
        return
    others = choices.chosen - set(names_of(VerifyChoices))
    if others:
        flag = spell_flag(ReleaseChoices, min(others))
        raise SettingsError(f"{flag}: is not used by --verify, which writes nothing; leave it out.")
    _verify(release, choices.key)


def _release(choices: ReleaseChoices) -> None:
    # imported here: torch and nnU-Net take seconds, which --help need not wait for
    from nnunetv2_federated.experiment.release import release  # noqa: PLC0415
    from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders  # noqa: PLC0415

    use_trainer_folders()
    made = release(choices, say)
    signed = "signed" if made.signed else "not signed"
    say(f"wrote {made.path}: {made.files} files, {signed}, no name of a case found")


def _verify(release: Path, key: Path | None) -> None:
    # imported here, as above
    from nnunetv2_federated.experiment.verify_release import verify_release  # noqa: PLC0415

    found = verify_release(release, key)
    if found.signer is not None:
        whose = f"signed with the key {found.signer}"
    elif found.signed:
        whose = "signed, but give --key to know by whom"
    else:
        whose = "not signed"
    card = found.card
    say(
        f"{release} is whole: {card.dataset}, {', '.join(card.configurations)}, "
        f"{found.files} files as in SHA256SUMS; {whose}"
    )


if __name__ == "__main__":
    main()
