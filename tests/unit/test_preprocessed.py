"""What stands beside preprocessed cases, or is missing there, is named before nnU-Net trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset import find_name, load_dataset
from nnunetv2_federated.nnunet.data.preprocessed import check_files
from nnunetv2_federated.nnunet.planning.raw_site import RawSite

WHOLE = ("liver_1.b2nd", "liver_1_seg.b2nd", "liver_1.pkl")
OLDER = ("liver_2.npz", "liver_2.pkl", "liver_2.npy", "liver_2_seg.npy")


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("names", "cases"), [((), False), (("liver_1.pkl",), False), (WHOLE, True), (OLDER, True)]
)
def test_whole_cases_and_none(names: tuple[str, ...], cases: bool, tmp_path: Path) -> None:
    (tmp_path / "@eaDir").mkdir()  # nnU-Net looks into no folder
    (tmp_path / "copy.b2nd").mkdir()

    assert check_files(folder_of(tmp_path, *names)) is cases


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((*WHOLE, "Thumbs.db"), r"holds Thumbs.db beside nnU-Net's own files: remove"),
        ((*WHOLE, "._liver_1.b2nd"), r"holds ._liver_1.b2nd beside"),
        ((*WHOLE, "backup.zip", "old.tar.gz", ".x", "a", "b"), r"\.x, a, b and 2 more beside"),
        ((*WHOLE, *OLDER), r"two versions of nnU-Net, .b2nd and .npz: remove liver_2.npz"),
        (WHOLE[:2], r"lacks liver_1.pkl: preprocessing was interrupted"),
        ((WHOLE[0], WHOLE[2]), r"lacks liver_1_seg.b2nd"),
        (("liver_2.npz",), r"lacks liver_2.pkl"),
    ],
)
def test_what_is_something_else_is_named(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        check_files(folder_of(tmp_path, *names))


@pytest.fixture
def two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for path in ("raw/Dataset077_Colon", "preprocessed/Dataset077_Colon", "results/Dataset077_Old"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "raw" / "Dataset077_Colon" / "dataset.json").write_text("{}")


BOTH = (
    r"more than one has (this id|it), Dataset077_Colon \(in nnUNet_raw, nnUNet_preprocessed\) and "
    r"Dataset077_Old \(in nnUNet_results\)"
)


@pytest.mark.usefixtures("two_names")
def test_two_datasets_of_one_id_are_both_named() -> None:
    for find in (find_name, load_dataset, RawSite.open):
        with pytest.raises(SettingsError, match=BOTH):
            find("77")

    assert find_name("Dataset077_Colon") == "Dataset077_Colon"
    with pytest.raises(SettingsError, match=f"nnU-Net preprocesses by the id, and {BOTH}"):
        RawSite.open("Dataset077_Colon")
    with pytest.raises(SettingsError, match="plans nnUNetPlans do not exist for Dataset077_Colon"):
        load_dataset("Dataset077_Colon")


@pytest.mark.usefixtures("two_names")
def test_an_id_that_none_has_is_unknown() -> None:
    assert find_name("78") is None
    assert find_name("colon") is None
