"""``nnUNetv2_federated_provision``: certificates and keys of a federation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.federation.choice import (
    Allowed,
    Choice,
    Choices,
    Count,
    FromList,
    Texts,
    record,
    spell_flag,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.address import DEFAULT_PORT, Address
from nnunetv2_federated.flower.deployment.server.credentials import (
    DEFAULT_DAYS,
    fingerprints,
    provision,
    revoke,
)

DESCRIPTION = """Make a certificate authority, the server's certificate, and a bundle for each site.
Run it again to add sites: what exists is kept."""

_Paths = Annotated[tuple[Path, ...], FromList, Allowed("a list of paths")]


@record
class ProvisionChoices(Choices):
    """Choices of ``nnUNetv2_federated_provision``."""

    group: ClassVar[str] = "credentials"

    folder: Annotated[
        Path,
        Choice("folder of all keys and certificates; keep it secret", "FOLDER", positional=True),
    ]
    server: Annotated[
        str | None,
        Choice(
            f"address at which the sites will find the server; port {DEFAULT_PORT} if it has none",
            "HOST[:PORT]",
            unset="none",
        ),
    ] = None
    public_key: Annotated[
        _Paths,
        Choice(
            "public key of each site, made there with nnUNetv2_federated_site --new-key NAME",
            "NAME.pub",
            unset="none",
        ),
    ] = ()
    sites: Annotated[
        Texts,
        Choice(
            "sites whose key pairs are made here: for a try on one machine", "NAME", unset="none"
        ),
    ] = ()
    revoke: Annotated[
        Texts,
        Choice(
            "refuse the keys of these sites, from the next message of a running server on; a name "
            "can get a new key",
            "NAME",
            unset="none",
        ),
    ] = ()
    days: Annotated[Count, Choice("days the server's certificate is valid", "N")] = DEFAULT_DAYS
    renew: Annotated[bool, Choice("make a new server certificate; sites keep theirs")] = False


def command() -> Command[ProvisionChoices]:
    """Return the command line."""
    parser = build_parser(ProvisionChoices, "nnUNetv2_federated_provision", DESCRIPTION)
    return Command(ProvisionChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _run(command().parse(argv)))


def _run(choices: ProvisionChoices) -> None:
    try:
        if choices.revoke:
            _revoke(choices)
        else:
            _provision(choices)
    except OSError as error:
        raise SettingsError(f"{choices.folder} cannot be written: {error}") from error


def _revoke(choices: ProvisionChoices) -> None:
    for name in ("server", "public_key", "sites", "renew"):
        if name in choices.chosen:
            flag = spell_flag(ProvisionChoices, name)
            raise SettingsError(f"--revoke with {flag}: one after the other, in two commands.")
    for site, mark in revoke(choices.folder, choices.revoke).items():
        print(f"revoked the key of {site}, {mark}")
    print("a running server refuses these keys from its next message on")


def _provision(choices: ProvisionChoices) -> None:
    if choices.server is None:
        raise SettingsError(
            "--server HOST[:PORT] is missing: where will the sites find the server?"
        )
    folder, sites = choices.folder, choices.sites
    made = provision(
        folder,
        Address.of(choices.server),
        sites,
        public_keys=choices.public_key,
        days=choices.days,
        renew=choices.renew,
    )
    for path in made:
        print(f"made {path}")
    if not made:
        print("nothing to do: all of this exists already")
    print("\ncompare by telephone with what each site sees (nnUNetv2_federated_site --check):")
    for what, mark in fingerprints(folder).items():
        print(f"  {what}  {mark}")
    print(f"\nkeep {folder / 'ca.key'} offline; give each folder of {folder / 'sites'} to its site")
    if sites:
        print(
            f"the keys of {', '.join(sites)} were made here, for a try on one machine: whoever "
            "reads this folder can take part as them. Hospitals make their own with "
            "nnUNetv2_federated_site --new-key"
        )


if __name__ == "__main__":
    main()
