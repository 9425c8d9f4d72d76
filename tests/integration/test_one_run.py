"""One run per folder, and nothing lost: second starts, refusals, kills, disks that are full."""

from __future__ import annotations

import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from consortium import wait_for
from small_datasets import write_dataset

from nnunetv2_federated.cli.plan import main as plan_main
from nnunetv2_federated.cli.train import main
from nnunetv2_federated.federation.disk import naming_the_disk
from nnunetv2_federated.federation.errors import CheckpointError, SettingsError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_split
from nnunetv2_federated.nnunet.training import torch_file

Train = Callable[..., Path]
SHORT = ("-device", "cpu", "--quiet", "--iterations-per-epoch", "2", "--val-iterations", "2")
"""As of ``train``: with --c other values would be refused."""


def refused(capsys: pytest.CaptureFixture[str], status: int, *argv: object) -> str:
    """Run the command; return the one line it refuses with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, argv), *SHORT])
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == status, lines
    assert len([line for line in lines if line.startswith("error: ")]) == 1, lines
    return lines[-1]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def a_run(dataset_2d: str, train: Train) -> Path:
    return train(dataset_2d, "2d", 0, "--rounds", 1, "--sites", 2)


def test_a_second_command_in_the_folder_is_refused(
    a_run: Path, dataset_2d: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content_of(a_run.parent)
    with only_one(a_run / ".lock", "the first", remove=True):
        for flags in ((), ("--c",), ("--val",), ("--prepare-only",)):
            line = refused(capsys, 2, dataset_2d, "2d", 0, *flags)
            assert f"another command is at work in {a_run}" in line
    assert content_of(a_run.parent) == before


def test_planning_what_is_being_planned_is_refused(
    dataset_2d: str, nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        only_one(nnunet_folders / "preprocessed" / ".Dataset901_Balls.lock", "", remove=True),
        pytest.raises(SystemExit) as exit_,
    ):
        plan_main(["-d", dataset_2d, "-c", "2d", "-npfp", "1", "-np", "1"])
    assert exit_.value.code == 2
    assert "another command plans or preprocesses" in capsys.readouterr().err


@pytest.mark.usefixtures("dataset_3d")
def test_a_start_that_is_refused_costs_an_earlier_run_nothing(
    a_run: Path, dataset_2d: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of file that was given for weights, and what else is found out late."""
    good = a_run / "checkpoint_final.pth"
    weights = torch.load(good, weights_only=False)
    first = next(iter(weights["network_weights"]))
    files = {name: tmp_path / f"{name}.pth" for name in ("lfs", "web", "empty", "cut", "plain")}
    files["lfs"].write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\n")
    files["web"].write_text("<!DOCTYPE html><title>Sign in</title>")
    files["empty"].touch()
    files["cut"].write_bytes(good.read_bytes()[:100_000])
    torch.save({"state_dict": {}}, files["plain"])
    files["shape"], files["other"] = tmp_path / "shape.pth", tmp_path / "other.pth"
    shape = weights["network_weights"] | {first: torch.zeros(7)}
    torch.save({"network_weights": shape}, files["shape"])
    torch.save({"network_weights": {"conv.weight": torch.zeros(1)}}, files["other"])
    files["zip"] = tmp_path / "archive.pth"
    with zipfile.ZipFile(files["zip"], "w") as archive:
        archive.writestr("readme", "no weights")
    files["list"], files["nan"] = tmp_path / "list.pth", tmp_path / "nan.pth"
    torch.save({"network_weights": [1, 2]}, files["list"])
    diverged = {key: value * math.nan for key, value in weights["network_weights"].items()}
    torch.save({"network_weights": diverged}, files["nan"])
    before = content_of(a_run.parent)
    for name, words in {
        "lfs": "git lfs pull",
        "web": "a web page",
        "empty": "an empty file",
        "cut": "not whole",
        "zip": "no checkpoint of nnU-Net",
        "plain": "has no 'network_weights'",
        "list": "has no 'network_weights'",
        "nan": "not finite",
        "shape": "of another network",
        "other": "of another network",
    }.items():
        line = refused(capsys, 2, dataset_2d, "2d", 0, "-pretrained_weights", files[name])
        assert f"-pretrained_weights {files[name]}: " in line
        assert words in line
        assert len(line) < 800
    for flags in (
        ("-pretrained_weights", tmp_path),
        ("-tr", "AbstractPrimus"),
        ("--sites-file", files["lfs"]),
        ("--sites-file", files["zip"]),
        ("--case-table", files["lfs"], "--by", "centre"),
        ("--case-table", files["cut"], "--by", "centre"),
        ("--settings", files["lfs"]),
        ("--settings", files["zip"]),
        ("--strategy", "krum", "--strategy-option", "nu=1"),
        ("--batchnorm", "local"),
    ):
        refused(capsys, 2, dataset_2d, "2d", 0, *flags)
    assert content_of(a_run.parent) == before


def test_a_tracker_that_does_not_start_costs_an_earlier_run_nothing(
    a_run: Path,
    dataset_2d: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("nnUNet_mlflow_enabled", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://tracking")
    before = content_of(a_run / "federation")
    assert "nnUNet_mlflow_enabled" in refused(capsys, 2, dataset_2d, "2d", 0, "--rounds", 2)
    assert content_of(a_run / "federation") == before
    assert not (a_run / "federation.previous").exists()


def test_an_earlier_run_is_kept_until_the_new_one_has_a_round(
    a_run: Path, dataset_2d: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, previous = a_run / "federation", a_run / "federation.previous"
    before, result = content_of(folder), content_of(a_run.parent)
    main([dataset_2d, "2d", "0", "--prepare-only", "--rounds", "2", "--sites", "2", *SHORT])

    assert content_of(previous) == before
    for name, content in result.items():
        if "federation/" not in name:
            assert (a_run.parent / name).read_bytes() == content, name
    assert f"delete {folder} and rename {previous} to federation" in capsys.readouterr().err

    shutil.rmtree(folder)
    assert f"rename {previous} to federation, then --c" in refused(
        capsys, 2, dataset_2d, "2d", 0, "--c"
    )
    previous.rename(folder)
    main([dataset_2d, "2d", "0", "--c", *SHORT])
    assert (folder / "state.pt").is_file()

    train(dataset_2d, "2d", 0, "--rounds", 2, "--sites", 2)
    assert not previous.exists()
    assert len(torch_file.load(folder / "state.pt")["rounds"]) == 2


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A disk that refuses to write, which needs no disk: EFBIG, as ENOSPC comes in between."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_that_does_not_fit_is_the_disks_error_and_leaves_nothing(tmp_path: Path) -> None:
    """Torch raises a RuntimeError about its archive in its place."""
    path = tmp_path / "state.pt"
    torch_file.save(path, {"round": 1})
    for size in (0, 100, 2**16, 2**20):
        with no_file_larger_than(size), pytest.raises(OSError, match=r"too large.*state\.pt"):
            torch_file.save(path, {"weights": torch.zeros(2**20), "more": torch.zeros(9)})
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    assert torch_file.load(path) == {"round": 1}


def test_a_disk_that_is_full_is_told_whatever_a_library_made_of_it(tmp_path: Path) -> None:
    """As nnU-Net's pools, whose workers write predictions and preprocessed cases, do."""

    def fail(error: Exception) -> None:
        with naming_the_disk(tmp_path):
            raise error

    with no_file_larger_than(100):
        with pytest.raises(OSError, match=f"too large.*{tmp_path}"):
            fail(RuntimeError("Some background workers are no longer alive"))
        with pytest.raises(SettingsError):
            fail(SettingsError("our own"))
    with pytest.raises(RuntimeError, match="no disk's"):
        fail(RuntimeError("no disk's"))
    with pytest.raises(OSError, match=f"full.*{tmp_path}"):
        fail(OSError(28, "full"))
    assert not list(tmp_path.iterdir())


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for content, words in (
        ({"epoch": 1}, "older"),
        ({"format": 4}, "upgrade"),
        ([1], "cannot be read"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=words):
            torch_file.load(path)


def test_a_disk_that_is_full_ends_a_training_in_one_line_and_c_goes_on(
    dataset_2d: str, train: Train, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (dataset_2d, "2d", 0, "--rounds", 1, "--sites", 2)
    whole = train(*flags)
    expected = torch_file.load(whole / "federation" / "state.pt")["weights"]
    sizes = {name: (whole / name).stat().st_size for name in ("checkpoint_final.pth",)}
    sizes["state.pt"] = (whole / "federation" / "state.pt").stat().st_size
    site = whole / "federation" / "sites" / "site_01"
    sizes["after_round_0.pt"] = (site / "after_round_0.pt").stat().st_size
    shutil.rmtree(results)

    resume: tuple[str, ...] = ()
    for name in sorted(sizes, key=lambda n: sizes[n]):  # each is found too large in its turn
        with no_file_larger_than(sizes[name] - 1):
            line = refused(capsys, 1, *flags, *resume)
        assert "File too large: make room" in line
        assert not list(results.rglob("*.tmp"))
        resume = ("--c",)
    main([*map(str, flags), "--c", *SHORT])
    assert torch.equal(torch_file.load(whole / "federation" / "state.pt")["weights"], expected)


def test_folds_that_cannot_be_written_are_one_line(dataset_2d: str, tmp_path: Path) -> None:
    dataset = load_dataset(dataset_2d)
    copy = tmp_path / dataset.name
    shutil.copytree(dataset.folder, copy, ignore=shutil.ignore_patterns("splits_final.json"))
    (copy / f"splits_final.json.{os.getpid()}.tmp").mkdir()  # also root may not write there
    object.__setattr__(dataset, "folder", copy)
    with pytest.raises(SettingsError, match=r"splits_final\.json cannot be written.*fold all"):
        fold_split(dataset, "2d", 0)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe"])
@pytest.mark.parametrize("name", ["nnUNetPlans.json", "dataset.json", "splits_final.json"])
def test_a_damaged_file_of_nnunet_is_one_line(
    name: str, text: str, dataset_2d: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = load_dataset(dataset_2d).folder / name
    fold_split(load_dataset(dataset_2d), "2d", 0)
    content = path.read_bytes()
    path.write_bytes(text.encode("latin-1"))
    try:
        assert f"{name} is damaged" in refused(capsys, 2, dataset_2d, "2d", 0)
    finally:
        path.write_bytes(content)
    assert not results.exists()


def test_batches_that_do_not_fit_into_shared_memory_are_refused(
    dataset_2d: str,
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers that find no room hand over nothing, and a training waits for it for ever."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    line = refused(capsys, 2, dataset_2d, "2d", 0, "--batch-size", 10**9)
    assert "/dev/shm" in line  # noqa: S108
    assert "nnUNet_n_proc_DA=0" in line
    assert not results.exists()


def descendants(pid: int) -> dict[int, str]:
    """State of each process below one that is not merely waited for."""
    ps = ["ps", "-eo", "pid=,ppid=,stat="]
    rows = subprocess.run(ps, capture_output=True, text=True, check=True)
    processes = [line.split() for line in rows.stdout.splitlines()]
    found: dict[int, str] = {}
    parents = {pid}
    while parents:
        below = {int(p): s for p, parent, s in processes if int(parent) in parents}
        found |= {p: s for p, s in below.items() if not s.startswith("Z")}
        parents = set(below)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_and_wait(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a command; what it started is gone within seconds."""
    children = descendants(process.pid)
    process.kill()
    process.wait()
    try:
        wait_for(lambda: not any(map(alive, children)), f"end of {children}", 30)
    finally:
        for pid in filter(alive, children):
            os.kill(pid, signal.SIGKILL)


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@needs_linux
def test_workers_of_a_killed_training_do_not_outlive_it(
    dataset_2d: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And while it lives, the same command cannot take its folder; when it is dead, it can."""
    flags = (dataset_2d, "2d", "0", "--rounds", "99", "--sites", "2")
    command = [sys.executable, "-m", "nnunetv2_federated.cli.train", *flags, *SHORT]
    with subprocess.Popen(command, env=os.environ | {"nnUNet_n_proc_DA": "2"}) as process:
        try:
            wait_for(lambda: any(results.rglob("state.pt")), "first round")
            assert len(descendants(process.pid)) == 2 * (2 + 1)  # training and validation
            fold = next(results.glob("*/*/fold_0"))
            assert f"at work in {fold}" in refused(capsys, 2, *flags)
            assert (fold / "federation" / "state.pt").is_file()
        finally:
            kill_and_wait(process)
    main([*flags, "--prepare-only", *SHORT])
    assert (fold / "federation.previous" / "state.pt").is_file()


@needs_linux
@pytest.mark.parametrize("stage", ["fingerprint", "preprocessing"])
def test_workers_of_a_killed_planning_do_not_outlive_it(
    stage: str, nnunet_folders: Path, tmp_path: Path
) -> None:
    del nnunet_folders
    write_dataset(tmp_path, "Dataset911_Many", (32, 32), cases=40)
    (tmp_path / "preprocessed").mkdir()
    environment = os.environ | {
        "nnUNet_raw": str(tmp_path),
        "nnUNet_preprocessed": str(tmp_path / "preprocessed"),
    }
    environment.pop("nnUNet_n_proc_DA", None)
    command = [sys.executable, "-m", "nnunetv2_federated.cli.plan", "-d", "911", "-c", "2d"]
    flags = ["-npfp", "3" if stage == "fingerprint" else "1", "-np", "3"]
    planned = tmp_path / "preprocessed" / "Dataset911_Many" / "nnUNetPlans.json"
    with subprocess.Popen([*command, *flags], env=environment) as process:
        try:
            if stage == "preprocessing":
                wait_for(planned.is_file, "plans")
            wait_for(lambda: len(descendants(process.pid)) >= 4, "workers and their tracker")
        finally:
            kill_and_wait(process)


@needs_linux
def test_a_command_started_by_a_killed_one_ends(tmp_path: Path) -> None:
    """A comparison's training, the SuperLink."""
    code = (
        "import subprocess, sys;"
        "from nnunetv2_federated.federation.children import die_with_parent;"
        "child = subprocess.Popen(['sleep', '600'], preexec_fn=die_with_parent());"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(f'{{child.pid}}\\n');"
        "child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        wait_for((tmp_path / "pid").is_file, "child")
        time.sleep(0.2)
        kill_and_wait(process)


def can_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


def inside(mount: str, *flags: str, **variables: str) -> tuple[int, str]:
    """Run a training where something is mounted that nobody else sees."""
    command = f'{mount} && exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", command, "sh"),
            *(sys.executable, "-m", "nnunetv2_federated.cli.train", *flags, *SHORT),
        ],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="mounts file systems: needs root and unshare")
def test_disks_as_containers_have_them(dataset_2d: str, results: Path) -> None:
    flags = (dataset_2d, "2d", "0", "--rounds", "1", "--sites", "2")
    for mount, variables, status, words in (
        (
            "mount -t tmpfs -o size=64k tmpfs /dev/shm",
            {"nnUNet_n_proc_DA": "2"},
            2,
            "/dev/shm",  # noqa: S108
        ),
        (
            f"mkdir -p {results} && mount -t tmpfs -o size=1m tmpfs {results}",
            {},
            1,
            "No space left on device: make room",
        ),
        (
            f"mount --bind {results} {results} && mount -o remount,ro,bind {results}",
            {},
            2,
            "nnUNet_results cannot be written",
        ),
    ):
        code, error = inside(mount, *flags, **variables)
        assert (code, len(error.strip().splitlines())) == (status, 1), error
        assert words in error
