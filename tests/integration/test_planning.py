"""One plan for several datasets: equal to nnU-Net's own plan of the pooled data, and safe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from flwr.app import Message
from small_datasets import plan_and_preprocess

from nnunetv2_federated.cli.plan import main
from nnunetv2_federated.flower.in_process import InProcessGrid

Sites = dict[str, Path]


def write_ct_site(folder: Path, offset: float, seed: int, cases: int) -> None:
    """Write volumes of different sizes and spacings, with a margin of zeros to crop."""
    rng = np.random.default_rng(seed)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index in range(cases):
        shape = tuple(int(n) for n in rng.integers((10, 18, 20), (18, 30, 32)))
        image = np.zeros(shape, np.float32)
        image[:, 3:-3, 2:-2] = rng.normal(offset, 30, (shape[0], shape[1] - 6, shape[2] - 4))
        seg = np.zeros(shape, np.uint8)
        seg[3:6, 5:10, 6:12] = 1
        spacing = tuple(float(s) for s in rng.choice([0.8, 0.9, 1.0, 2.5, 3.0], 3))
        for file, array in (("imagesTr/{}_0000", image), ("labelsTr/{}", seg)):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(spacing)
            path = folder / f"{file.format(f'{folder.name[7:10]}patient{index:03d}')}.mha"
            sitk.WriteImage(volume, str(path))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": cases,
        "file_ending": ".mha",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """Three sites whose intensities differ."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folders = {}
    for number, (offset, cases) in enumerate([(-100, 6), (50, 5), (400, 7)], start=1):
        folders[str(710 + number)] = tmp_path / "raw" / f"Dataset{710 + number}_Site{number}"
        write_ct_site(folders[str(710 + number)], offset, number, cases)
    return folders


def pooled_dataset(sites: Sites) -> str:
    """Put all cases into one dataset."""
    raw = next(iter(sites.values())).parent
    pooled = raw / "Dataset710_Pooled"
    for folder in sites.values():
        for part in ("imagesTr", "labelsTr"):
            shutil.copytree(folder / part, pooled / part, dirs_exist_ok=True)
    content = json.loads((next(iter(sites.values())) / "dataset.json").read_text())
    content["numTraining"] = len(list((pooled / "labelsTr").iterdir()))
    (pooled / "dataset.json").write_text(json.dumps(content))
    return "710"


def preprocessed(folder: Path) -> Path:
    return folder.parents[1] / "preprocessed" / folder.name


def read_plans(folder: Path, name: str = "nnUNetPlans") -> dict:
    return json.loads((preprocessed(folder) / f"{name}.json").read_text())


def plan(*argv: str) -> None:
    main(["-npfp", "1", "-np", "1", *argv])


def error_of(argv: Iterable[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        plan(*argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.versions
@pytest.mark.parametrize(
    ("planner", "name"),
    [("ExperimentPlanner", "nnUNetPlans"), ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans")],
)
def test_plans_equal_those_of_the_pooled_data(planner: str, name: str, sites: Sites) -> None:
    plan("-d", *sites, "-pl", planner, "--no_pp")
    plan_and_preprocess(int(pooled_dataset(sites)), [], planner)

    stock = read_plans(sites["711"].with_name("Dataset710_Pooled"), name)
    for folder in sites.values():
        ours = read_plans(folder, name)
        assert ours.pop("dataset_name") == folder.name
        intensities = ours.pop("foreground_intensity_properties_per_channel")["0"]
        expected = stock["foreground_intensity_properties_per_channel"]["0"]
        bin_width = 2.0 ** np.ceil(np.log2((expected["max"] - expected["min"]) / 4096))
        for key, value in expected.items():
            tolerance = {"abs": bin_width / 2} if "percentile" in key or key == "median" else {}
            assert intensities[key] == pytest.approx(value, **(tolerance or {"rel": 1e-6})), key
        assert ours == {
            key: value
            for key, value in stock.items()
            if key not in ("dataset_name", "foreground_intensity_properties_per_channel")
        }


def test_ct_is_normalised_with_the_statistics_of_all_sites(sites: Sites) -> None:
    plan("-d", *sites, "-c", "3d_fullres")

    foreground = []
    for folder in sites.values():
        for label in sorted((folder / "labelsTr").iterdir()):
            image = folder / "imagesTr" / label.name.replace(".mha", "_0000.mha")
            mask = sitk.GetArrayFromImage(sitk.ReadImage(str(label))) > 0
            foreground.append(sitk.GetArrayFromImage(sitk.ReadImage(str(image)))[mask])
    voxels = np.concatenate(foreground)  # every case has 90 of them: equal weight
    low, high = np.percentile(voxels, (0.5, 99.5))
    for folder in sites.values():
        data = preprocessed(folder) / "nnUNetPlans_3d_fullres"
        cases = [path for path in data.glob("*.b2nd") if not path.name.endswith("_seg.b2nd")]
        values = np.concatenate([blosc2.open(str(p), mode="r")[:].ravel() for p in cases])
        # whatever a site's own range is, it is clipped to the federation's and scaled by it;
        # the extractor samples with replacement, hence the tolerance
        bounds = (np.array([low, high]) - voxels.mean()) / voxels.std()
        assert values.min() >= bounds[0] - 0.05
        assert values.max() <= bounds[1] + 0.05
    first_site = preprocessed(sites["711"]) / "nnUNetPlans_3d_fullres"
    case = blosc2.open(str(first_site / "711patient000.b2nd"), mode="r")[0]
    assert np.median(case) == pytest.approx((-100 - voxels.mean()) / voxels.std(), abs=0.15)


class Recorded:
    """Every message of both directions, as JSON text and raw bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        self.blobs: list[bytes] = []
        deliver = InProcessGrid._deliver

        def record(grid: InProcessGrid, message: Message) -> Message:
            self._take(message)
            answer = deliver(grid, message)
            self._take(answer)
            return answer

        monkeypatch.setattr(InProcessGrid, "_deliver", record)

    def _take(self, message: Message) -> None:
        if message.has_error():
            self.texts.append(message.error.reason)
            return
        for records in message.content.config_records.values():
            self.texts += [value for value in records.values() if isinstance(value, str)]
        for arrays in message.content.array_records.values():
            self.blobs += [array.data for array in arrays.values()]


def voxel_rows(sites: Sites) -> Iterator[bytes]:
    """Return rows of every image, raw and preprocessed, as float32."""
    for folder in sites.values():
        for path in (folder / "imagesTr").iterdir():
            volume = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            yield volume[volume.shape[0] // 2, volume.shape[1] // 2].astype(np.float32).tobytes()
        for path in preprocessed(folder).glob("nnUNetPlans_3d_fullres/*.b2nd"):
            if not path.name.endswith("_seg.b2nd"):
                volume = blosc2.open(str(path), mode="r")[0]
                yield np.ascontiguousarray(volume[0, volume.shape[1] // 2]).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("fingerprint", ["full", "binned"])
def test_nothing_about_a_patient_leaves_a_site(
    fingerprint: str, sites: Sites, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Path]
) -> None:
    monkeypatch.delenv("nnUNet_n_proc_DA")
    messages = Recorded(monkeypatch)

    plan("-d", *sites, "-c", "3d_fullres", "--fingerprint", fingerprint)
    planning = len(messages.texts)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    fold = train(
        *("--site-datasets", *sites, "3d_fullres", "0", "--rounds", "2", "--batch-size", "2")
    )

    assert (fold / "checkpoint_final.pth").is_file()
    assert planning == 3 * (1 + 2 + 2 + 2)  # survey (no payload), then question and answer
    assert len(messages.texts) > planning
    for text in messages.texts:
        assert "patient" not in text
        assert "imagesTr" not in text
        assert str(sites["711"].parents[1]) not in text
        assert ".b2nd" not in text
        assert not any(row in text for row in case_records(sites)), text
    weights = {len(blob) for blob in messages.blobs}
    assert len(weights) == 1  # the network's vector, and nothing else
    rows = list(voxel_rows(sites))
    assert len(rows) == 2 * 18
    for blob in messages.blobs:
        assert not any(row in blob for row in rows)


def case_records(sites: Sites) -> Iterator[str]:
    """Return the sizes of each case as JSON writes them, before and after cropping."""
    for folder in sites.values():
        for path in (folder / "imagesTr").iterdir():
            z, y, x = sitk.ReadImage(str(path)).GetSize()[::-1]
            for record in ((z, y, x), (z, y - 6, x - 4)):
                yield json.dumps(record)
                yield json.dumps(record, separators=(",", ":"))


def test_fewer_cases_than_a_bin_holds_is_said(
    sites: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    plan("-d", *sites, "--no_pp", "--fingerprint", "binned", "--min-cases", "6")

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == 1
    assert "Dataset712_Site2 has 5 training cases" in lines[0]


def no_dataset(folder: Path) -> None:
    shutil.rmtree(folder)


def other_labels(folder: Path) -> None:
    edit_dataset_json(folder, labels={"background": 0, "tumour": 1})


def other_channels(folder: Path) -> None:
    edit_dataset_json(folder, channel_names={"0": "MR"})


def edit_dataset_json(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_volumes(folder: Path, part: str, change: Callable[[np.ndarray], None]) -> None:
    for path in (folder / part).iterdir():
        volume = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        change(volume)
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(path))


def nan_intensities(folder: Path) -> None:
    change_volumes(folder, "imagesTr", lambda volume: volume.__setitem__((4, 7, 7), np.nan))


def regions_in_another_order(folder: Path) -> None:
    for site in folder.parent.iterdir():
        labels = {"background": 0, "whole": [1, 2], "core": [2]}
        labels = dict(sorted(labels.items())) if site == folder else labels
        edit_dataset_json(site, labels=labels, regions_class_order=[1, 2])


def older_key(folder: Path) -> None:
    edit_dataset_json(folder, modality={"0": "MR"})
    content = json.loads((folder / "dataset.json").read_text())
    del content["channel_names"]
    (folder / "dataset.json").write_text(json.dumps(content))


def other_plans(folder: Path) -> None:
    preprocessed(folder).mkdir()
    (preprocessed(folder) / "nnUNetPlans.json").write_text('{"plans_name": "nnUNetPlans"}')


BAD = [
    (no_dataset, "dataset 712 has no dataset.json under nnUNet_raw"),
    (other_labels, "site Dataset712_Site2: labels is"),
    (other_channels, "site Dataset712_Site2: channel_names is"),
    (regions_in_another_order, "output i is the i-th region of the file; all sites need the same"),
    (older_key, "site Dataset712_Site2: channel_names is {'0': 'MR'}, but {'0': 'CT'} at"),
    (nan_intensities, "site Dataset712_Site2: 5 of 5 training cases cannot be used (NaN)"),
    (other_plans, "site Dataset712_Site2: has other plans named nnUNetPlans already"),
]


@pytest.mark.parametrize(("break_", "message"), BAD)
def test_one_bad_site_stops_planning_and_changes_nothing(
    break_: Callable[[Path], None],
    message: str,
    sites: Sites,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_(sites["712"])
    before = sorted((sites["711"].parents[1] / "preprocessed").rglob("*"))

    error = error_of(("-d", *sites, "-c", "3d_fullres"), capsys)

    assert message in error
    assert ("712patient000: NaN" in error) == (break_ is nan_intensities)
    assert sorted((sites["711"].parents[1] / "preprocessed").rglob("*")) == before


def test_other_plans_are_replaced_only_when_asked_for(sites: Sites) -> None:
    other_plans(sites["712"])
    own = preprocessed(sites["712"]) / "dataset_fingerprint.json"
    own.write_text('{"spacings": "of this site"}')

    plan("-d", *sites, "--no_pp", "--replace-plans")
    plan("-d", *sites, "--no_pp")  # the same plans again: no conflict

    assert read_plans(sites["712"])["configurations"].keys() == {"2d", "3d_fullres"}
    kept = own.with_name("dataset_fingerprint_of_site.json")
    assert kept.read_text() == '{"spacings": "of this site"}'
    assert len(json.loads(own.read_text())["spacings"]) == 1  # no row per case


FLAGS = [
    (("-pl", "nnUNetPlannerNone"), "-pl nnUNetPlannerNone: no planner"),
    (("-np", "1", "2"), "-np 1 2: give one number"),
    (("--min-cases", "3"), "--min-cases: is for --fingerprint binned only"),
    (
        ("--fingerprint", "binned", "--min-cases", "0"),
        "--min-cases 0: must be a whole number of at least 1",
    ),
    (("-gpu_memory_target", "-1"), "-gpu_memory_target -1.0: must be above 0"),
    (("-c", "4d"), "-c 4d: the plans have 2d, 3d_fullres"),
    (("-d", "711", "711"), "-d 711 711: a dataset is named twice"),
    (("-d", "711", "999"), "dataset 999 has no dataset.json"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS)
def test_bad_flags_are_one_line(
    flags: tuple[str, ...], message: str, sites: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(("-d", *sites, *flags), capsys)
    assert not list((sites["711"].parents[1] / "preprocessed").iterdir())
