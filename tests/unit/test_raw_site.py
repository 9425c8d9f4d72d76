"""What a raw dataset's own files get wrong: told by kind, and to the site by name."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.fingerprint import CaseFingerprint
from nnunetv2_federated.federation.messages import FingerprintTask
from nnunetv2_federated.nnunet.data.raw_case import Work, analyse_case
from nnunetv2_federated.nnunet.planning.raw_site import RawSite

TASK = FingerprintTask(100, None, False)


def write(array: np.ndarray, path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cases of two channels, 3x6x5, with labels 0, 1 and, ignored, 2."""
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "raw" / "Dataset640_Prostate"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((3, 6, 5), np.uint8)
    mask[1, 2:4, 2:4] = 1
    mask[2, 0, 0] = 2
    for case in ("anna", "bert", "cleo"):
        for channel in range(2):
            image = np.arange(90, dtype=np.float32).reshape(mask.shape) + channel
            write(image, folder / "imagesTr" / f"{case}_{channel:04d}.nrrd")
        write(mask, folder / "labelsTr" / f"{case}.nrrd")
    edit(
        folder,
        channel_names={"0": "T2", "1": "ADC"},
        labels={"background": 0, "prostate": 1, "ignore": 2},
        file_ending=".nrrd",
        numTraining=3,
    )
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def change(path: Path, change_: Callable[[np.ndarray], np.ndarray | None]) -> None:
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    changed = change_(array)
    write(array if changed is None else changed, path)


def masks(index: Any, value: float, dtype: type = np.uint8) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        def put(array: np.ndarray) -> np.ndarray:
            array = array.astype(dtype)
            array[index] = value
            return array

        change(folder / "labelsTr" / "bert.nrrd", put)

    return spoil


def intensities_in_place_of_a_mask(folder: Path) -> None:
    change(folder / "labelsTr" / "bert.nrrd", lambda a: np.arange(1000, 1090).reshape(a.shape))


UNUSABLE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a channel is missing": (
        lambda f: (f / "imagesTr" / "bert_0001.nrrd").unlink(),
        "1 of 2 channels",
        "",
    ),
    "a channel too many": (
        lambda f: write(np.zeros((3, 6, 5), np.float32), f / "imagesTr" / "bert_0002.nrrd"),
        "3 of 2 channels",
        "",
    ),
    "another label": (masks((0, 0, 0), 9), "undeclared label 9", ""),
    "a negative label": (masks((0, 0, 0), -1, np.int8), "undeclared label -1", ""),
    "half a label": (masks((0, 0, 0), 0.5, np.float32), "undeclared labels", "0.5, 1 in all"),
    "an image for a mask": (
        intensities_in_place_of_a_mask,
        "undeclared labels",
        "1000, 1001, 1002, 90 in all",
    ),
    "no mask": (
        lambda f: (f / "labelsTr" / "bert.nrrd").unlink(),
        "no mask in labelsTr",
        "",
    ),
    "a mask of another size": (
        lambda f: change(f / "labelsTr" / "bert.nrrd", lambda a: a[:2]),
        "mask of another size than the image",
        "(2, 6, 5), (3, 6, 5)",
    ),
    "an image of another size": (
        lambda f: change(f / "imagesTr" / "bert_0001.nrrd", lambda a: a[:, 1:]),
        "image not readable by SimpleITKIO",
        "Not all input images have the same shape",
    ),
    "no image": (
        lambda f: (f / "imagesTr" / "bert_0000.nrrd").write_text("version of something else"),
        "image not readable by SimpleITKIO",
        "RuntimeError",
    ),
}


@pytest.mark.parametrize(("spoil", "kind", "more"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_wrong_with_a_case(
    spoil: Callable[[Path], None], kind: str, more: str, raw: Path
) -> None:
    def analyse() -> CaseFingerprint | str:
        images = sorted(map(str, (raw / "imagesTr").glob("bert_*")))
        mask = str(raw / "labelsTr" / "bert.nrrd")
        return analyse_case(Work(images, mask, SimpleITKIO, 100, 2, (0, 1, 2)))

    assert isinstance(analyse(), CaseFingerprint)
    spoil(raw)
    found = analyse()

    assert isinstance(found, str)
    assert found.partition(":")[0] == kind  # what may be told
    assert more in found


def test_a_case_that_cannot_be_used_is_named_at_the_site_only(raw: Path) -> None:
    (raw / "imagesTr" / "bert_0001.nrrd").unlink()
    masks((0, 0, 0), 1000, np.uint16)(raw)
    change(raw / "labelsTr" / "cleo.nrrd", lambda a: a * 1000.0)
    site = RawSite.open("640", fingerprint_processes=1)

    with pytest.raises(SiteError) as refused:
        site.fingerprint(TASK)

    assert (
        "site Dataset640_Prostate: 2 of 3 training cases cannot be used (1 of 2 channels, "
        "undeclared labels); the site's log names them" in str(refused.value)
    )
    assert site.notes == [
        "Dataset640_Prostate, case bert: 1 of 2 channels",
        "Dataset640_Prostate, case cleo: undeclared labels: 1000, 2000, 2 in all",
    ]


def test_nnunets_own_check_is_heard(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nnU-Net's worker processes print is nowhere else."""
    monkeypatch.setattr(multiprocessing, "get_context", commands.real_context)
    image = sitk.ReadImage(str(raw / "labelsTr" / "bert.nrrd"))
    image.SetSpacing((1, 1, 4))
    sitk.WriteImage(image, str(raw / "labelsTr" / "bert.nrrd"))
    site = RawSite.open("640", fingerprint_processes=1)

    with pytest.raises(SiteError, match=r"--verify_dataset_integrity refuses the dataset") as error:
        site.fingerprint(FingerprintTask(100, None, True))

    assert "bert" not in str(error.value)
    assert "Spacing mismatch between segmentation" in site.notes[0]
    assert "bert.nrrd" in site.notes[0]


def shear(folder: Path) -> None:
    """Write a NIfTI whose axes are not orthonormal: ITK refuses it, nibabel reads it."""
    import nibabel as nib  # noqa: PLC0415

    for path in sorted(folder.glob("*Tr/*.nrrd")):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)
        affine = np.diag([1.0, 1, 1, 1])
        affine[1, 0] = 0.4 if "anna" in path.name else 0
        image = nib.Nifti1Image(array.T, affine)
        image.set_qform(None, code=0)
        nib.save(image, path.with_suffix(".nii.gz"))
        path.unlink()
    edit(folder, file_ending=".nii.gz")


def test_another_reader_is_told_with_the_image_that_is_to_blame(
    raw: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shear(raw)
    site = RawSite.open("640")

    assert site.survey().reader_writer == "NibabelIO"

    assert len(site.notes) == 1
    assert "anna_0000.nii.gz cannot be read by nnU-Net's usual reader" in site.notes[0]
    assert "Traceback" not in capfd.readouterr().err


def test_a_first_image_that_no_reader_can_read_is_told(raw: Path) -> None:
    (raw / "imagesTr" / "anna_0000.nrrd").write_text("version https://example.com/pointer\n")
    site = RawSite.open("640")

    with pytest.raises(SiteError, match="first training image cannot be read by any reader"):
        site.survey()

    assert "anna_0000.nrrd cannot be read" in site.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"0": "background", "1": "prostate"}}, "the other way round, as in nnU-Net v1"),
        ({"file_ending": None}, "has no file_ending"),
        ({"channel_names": ["T2", "ADC"]}, "give a name to each channel"),
    ],
)
def test_a_dataset_json_that_nnunet_cannot_read_is_told(
    changes: dict[str, Any], message: str, raw: Path
) -> None:
    edit(raw, **changes)

    with pytest.raises(SettingsError, match=message):
        RawSite.open("640").survey()


def test_an_older_spelling_is_told_in_the_present_one(raw: Path) -> None:
    edit(
        raw,
        channel_names=None,
        modality={"0": "T2", "1": "ADC"},
        labels={"background": "0", "prostate": "1", "ignore": 2},
        regions_class_order=[1],
    )

    survey = RawSite.open("640").survey()

    assert survey.channel_names == {"0": "T2", "1": "ADC"}
    assert survey.labels == {"background": 0, "prostate": 1, "ignore": 2}
    assert survey.regions_class_order is None
