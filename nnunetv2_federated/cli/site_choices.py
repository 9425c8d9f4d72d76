"""Choices of ``nnUNetv2_federated_site``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from nnunetv2_federated.federation.choice import Allowed, Choice, Choices, Count, FromList, record
from nnunetv2_federated.federation.errors import SettingsError

T = TypeVar("T")

ASK = "ask"
"""In place of a hash: show what was proposed, and ask."""


@record
class SiteCommandChoices(Choices):
    """What a site's engineer can choose."""

    group: ClassVar[str] = "site"

    dataset: Annotated[
        str | None,
        Choice(
            "id or name of the dataset; raw, or planned and preprocessed here",
            "DATASET",
            positional=True,
            unset="none",
        ),
    ] = None
    site: Annotated[
        Path | None,
        Choice("file of the bundle that the coordinator handed out", "site.toml", unset="none"),
    ] = None
    new_key: Annotated[
        str | None,
        Choice(
            "make this site's key pair, and end: the private half stays here, NAME.pub goes to the "
            "coordinator",
            "NAME",
            unset="none",
        ),
    ] = None
    folder: Annotated[
        Path | None,
        Choice(
            "for --new-key: folder of the key, created if missing", "FOLDER", unset="NAME, here"
        ),
    ] = None
    device: Annotated[
        Literal["cuda", "cpu", "mps"] | None,
        Choice("device to train on", flag="-device", unset="cuda if there is one, else cpu"),
    ] = None
    num_gpus: Annotated[
        Count,
        Choice("GPUs to train on, as in nnUNetv2_train", "N", flag="-num_gpus"),
    ] = 1
    np: Annotated[
        Count | None,
        Choice(
            "processes for the fingerprint and the preprocessing when sites plan together",
            "N",
            flag="-np",
            unset="nnU-Net's, at most one a core",
        ),
    ] = None
    approve: Annotated[
        str | None,
        Choice(
            "agree to what was proposed, and end: without HASH show it and ask; with at least 12 "
            "digits of its hash, agree to that",
            "HASH",
            bare=ASK,
            unset="none",
        ),
    ] = None
    withdraw: Annotated[
        str | None,
        Choice(
            "take an approval back, and end: the site takes no part from the next message on",
            "HASH",
            unset="none",
        ),
    ] = None
    rewind: Annotated[
        Annotated[tuple[str, str], FromList, Allowed("a run and a round")] | None,
        Choice(
            "let a server that was restored from a backup ask for a round again, and end; what was "
            "spent stays spent",
            ("RUN", "ROUND"),
            unset="none",
        ),
    ] = None
    approve_all: Annotated[
        bool, Choice("agree to whatever the coordinator signs; your limits still hold")
    ] = False
    check: Annotated[
        Annotated[tuple[str, ...], FromList] | None,
        Choice(
            "only check all that is needed, train one iteration (2d 0 if none is named), and print "
            "a table",
            "CONFIGURATION FOLD",
            may_be_empty=True,
            unset="no check",
        ),
    ] = None
    trainer: Annotated[str, Choice("trainer for --check", "TRAINER", flag="-tr")] = "nnUNetTrainer"
    plans: Annotated[str, Choice("plans identifier for --check", "PLANS", flag="-p")] = (
        "nnUNetPlans"
    )

    @property
    def dataset_name(self) -> str:
        """Id or name of the dataset; all but ``--new-key`` need one."""
        return self._needed("DATASET", self.dataset)

    @property
    def site_file(self) -> Path:
        """File of the site; all but ``--new-key`` need one."""
        return self._needed("--site site.toml", self.site)

    def _needed(self, flag: str, value: T | None) -> T:
        if value is None:
            raise SettingsError(f"{flag} is missing: see nnUNetv2_federated_site --help.")
        return value
