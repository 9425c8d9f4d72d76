"""What a user can choose of a release, and of its verification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from nnunetv2_federated.experiment.choices import Fold, Plans
from nnunetv2_federated.federation.choice import Allowed, Choice, Choices, FromList, Texts, record
from nnunetv2_federated.federation.text import LONGEST, clean


def _line(text: str) -> str:
    if not text or clean(text) != text:
        raise ValueError("not one line")
    return text


Line = Annotated[str, AfterValidator(_line), Allowed(f"one line of at most {LONGEST} characters")]
_FIRST = "checkpoint_final.pth"


@record
class ReleasedModelChoices(Choices):
    """Which trained folds are released; named as in ``nnUNetv2_export_model_to_zip``."""

    group: ClassVar[str] = "as in nnUNetv2_export_model_to_zip"

    configurations: Annotated[
        Texts | None, Choice("configurations", "CONFIGURATION", flag="-c", unset="none")
    ] = None
    folds: Annotated[
        Annotated[tuple[Fold, ...], FromList], Choice("folds: 0 to 4, or all", "FOLD", flag="-f")
    ] = (0, 1, 2, 3, 4)
    trainer: Annotated[
        str | None,
        Choice(
            "trainer, or the one whose federated sibling has trained",
            "TRAINER",
            flag="-tr",
            unset="the only one that has trained the configuration",
        ),
    ] = None
    plans: Plans = "nnUNetPlans"
    checkpoints: Annotated[
        Texts, Choice("checkpoints; others use the first", "FILE", flag="-chk")
    ] = (_FIRST,)
    output: Annotated[
        Path | None,
        Choice("zip, or folder, to write; it must not exist", "OUT", flag="-o", unset="none"),
    ] = None


@record
class CardChoices(Choices):
    """What the model card says that no file knows."""

    group: ClassVar[str] = "model card"

    purpose: Annotated[Line | None, Choice("what it is for", "TEXT", unset="none")] = None
    licence: Annotated[Line | None, Choice("its licence", "TEXT", unset="none")] = None
    contact: Annotated[Line | None, Choice("whom to ask", "TEXT", unset="none")] = None
    results: Annotated[
        Annotated[tuple[Path, ...], FromList, Allowed("a list of paths")],
        Choice(
            "folders of nnUNetv2_federated_compare, nnUNetv2_federated_evaluate or "
            "nnUNetv2_evaluate_folder, whose means the card shows",
            "FOLDER",
            unset="none",
        ),
    ] = ()


@record
class PartChoices(Choices):
    """Forms of the model besides nnU-Net's own."""

    group: ClassVar[str] = "parts"

    monai: Annotated[bool, Choice("write a MONAI bundle of a segmentation model")] = True
    onnx: Annotated[bool, Choice("write an ONNX file of a classifier")] = True
    sign: Annotated[
        Path | None,
        Choice(
            "sign with the coordinator's key in the folder 'server' of "
            "nnUNetv2_federated_provision",
            "FOLDER",
            unset="none",
        ),
    ] = None


@record
class VerifyChoices(Choices):
    """A release that somebody else made."""

    group: ClassVar[str] = "verification"

    verify: Annotated[
        Path | None, Choice("check a release and write nothing", "RELEASE", unset="none")
    ] = None
    key: Annotated[
        Path | None,
        Choice("coordinator.pub, whose signature it must have", "PUBLIC", unset="none"),
    ] = None


@record
class ReleaseChoices(ReleasedModelChoices, CardChoices, PartChoices, VerifyChoices):
    """Choices of ``nnUNetv2_federated_release``."""

    group: ClassVar[str] = "what to release"

    dataset: Annotated[
        str | None, Choice("id or name of the dataset", "DATASET", positional=True, unset="none")
    ] = None
