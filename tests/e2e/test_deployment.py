"""Real Flower processes on loopback, with the credentials a coordinator hands out."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nnunetv2_federated.cli.train import main
from nnunetv2_federated.flower.deployment.credentials import Address, provision
from nnunetv2_federated.training.dataset import fold_split, load_dataset

pytestmark = pytest.mark.deployment

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(found: Callable[[], bool], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.2)


class Deployment:
    """Starts Flower's commands, each with a log and a home of its own, and stops them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.credentials = folder / "credentials"
        self.processes: list[subprocess.Popen[bytes]] = []
        provision(self.credentials, Address("localhost", self.port), ["hannover", "guangzhou"])

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / f"flwr_{name}"
        home.mkdir(exist_ok=True)
        return os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def start(self, name: str, *command: str | Path) -> Callable[[], str]:
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            self.processes.append(
                subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=self.environment(name)
                )
            )
        return log.read_text

    def start_server(self) -> Callable[[], str]:
        server = self.credentials / "server"
        log = self.start(
            "server",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-certfile", server / "server.crt", "--ssl-keyfile", server / "server.key"),
            *("--ssl-ca-certfile", server / "ca.crt", "--enable-supernode-auth"),
            *("--isolation", "process"),
        )
        wait_for(lambda: "Uvicorn running" in log(), "server")
        return log

    def start_site(self, site: str, ca: Path | None = None) -> Callable[[], str]:
        bundle = self.credentials / "sites" / site
        return self.start(
            site,
            *("flower-supernode", "--superlink", f"localhost:{self.port}"),
            *("--root-certificates", ca or bundle / "ca.crt"),
            *("--auth-supernode-private-key", bundle / "site.key", "--isolation", "process"),
            *("--host", "127.0.0.1", "--port", str(free_port())),
        )

    def register(self, site: str) -> None:
        environment = self.environment("coordinator")
        (Path(environment["FLWR_HOME"]) / "config.toml").write_text(
            f'[superlink.server]\naddress = "localhost:{self.port}"\n'
            f'root-certificates = "{self.credentials / "ca.crt"}"\n'
        )
        public = self.credentials / "server" / "sites" / f"{site}.pub"
        subprocess.run(
            ["flwr", "supernode", "register", public, "server"],
            env=environment,
            check=True,
            capture_output=True,
        )

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(30)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    running = Deployment(tmp_path)
    yield running
    running.stop()


def test_only_a_registered_key_and_the_right_authority_join(
    deployment: Deployment, tmp_path: Path
) -> None:
    provision(tmp_path / "stranger", Address("localhost", deployment.port), [])
    server = deployment.start_server()
    deployment.register("hannover")

    deployment.start_site("hannover")
    wait_for(lambda: '/v1/fleet/activate-node HTTP/1.1" 200' in server(), "site with its key")
    deployment.start_site("guangzhou")
    wait_for(lambda: "No SuperNode found with the given public key" in server(), "refusal")
    site = deployment.start_site("hannover", ca=tmp_path / "stranger" / "ca.crt")
    wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in site(), "distrust of the server")

    assert server().count('/v1/fleet/activate-node HTTP/1.1" 200') == 1


class Consortium:
    """A coordinator and hospitals: each a process with folders of its own, and no one's images."""

    def __init__(self, folder: Path, dataset: Path, sites: dict[str, list[str]]) -> None:
        self.folder = folder
        self.port = free_port()
        self.credentials = folder / "credentials"
        provision(self.credentials, Address("localhost", self.port), list(sites))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._prepare("server", dataset, None)
        for site, cases in sites.items():
            self._prepare(site, dataset, cases)

    def _prepare(self, name: str, dataset: Path, cases: list[str] | None) -> None:
        target = self.folder / name / "preprocessed" / dataset.name
        target.mkdir(parents=True)
        for file in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(dataset / file, target / file)
        if cases is None:
            return
        images = next(dataset.glob("nnUNetPlans_*"))
        (target / images.name).mkdir()
        for file in images.iterdir():
            if file.name.split(".")[0].removesuffix("_seg") in cases:
                shutil.copyfile(file, target / images.name / file.name)
        shutil.copytree(dataset / "gt_segmentations", target / "gt_segmentations")
        split = json.loads((dataset / "splits_final.json").read_text())[0]
        own = {part: [case for case in split[part] if case in cases] for part in split}
        (target / "splits_final.json").write_text(json.dumps([own]))

    def environment(self, name: str) -> dict[str, str]:
        base = self.folder / name
        return os.environ | {
            "nnUNet_raw": str(base / "raw"),
            "nnUNet_preprocessed": str(base / "preprocessed"),
            "nnUNet_results": str(base / "results"),
            "nnUNet_n_proc_DA": "0",
        }

    def start(self, name: str, *command: str | Path) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment(name),
                cwd=self.folder,
            )

    def start_server(self, *flags: str) -> None:
        self.start(
            "server",
            *("nnunetv2_federated.cli.server", "--dataset", "901", "--configuration", "2d"),
            *("--fold", "0", "-device", "cpu", *flags),
        )

    def start_site(self, site: str, *flags: str) -> None:
        bundle = self.credentials / "sites" / site / "site.toml"
        self.start(
            site, "nnunetv2_federated.cli.site", "901", "--site", bundle, "-device", "cpu", *flags
        )

    def said(self, name: str) -> str:
        file = self.folder / f"{name}.out"
        return file.read_text() if file.is_file() else ""

    def approve(self, site: str) -> None:
        """Wait until the site was asked, and agree, as its engineer would."""
        wait_for(lambda: "asked to take part" in self.said(site), f"proposal at {site}")
        found = re.search("federation ([0-9a-f]{12})", self.said(site))
        assert found is not None
        bundle = self.credentials / "sites" / site / "site.toml"
        command = ["901", "--site", bundle, "--approve", found[1]]
        subprocess.run(
            [sys.executable, "-m", "nnunetv2_federated.cli.site", *command],
            env=self.environment(site),
            check=True,
        )

    def wait_for_server(self, seconds: float = 300) -> int:
        return self.processes["server"].wait(seconds)

    @property
    def result(self) -> Path:
        return next((self.folder / "server" / "results").glob("*/*/fold_0"))

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(60)


SITES = {
    "bern": ["case_00", "case_03", "case_06", "case_09"],
    "oslo": ["case_01", "case_04", "case_07", "case_10"],
    "lyon": ["case_02", "case_05", "case_08", "case_11"],
}
SHORT = ("--rounds", "2", "--iterations-per-epoch", "2", "--val-iterations", "1")


@pytest.fixture
def consortium(tmp_path: Path, dataset_2d: str, nnunet_folders: Path) -> Iterator[Consortium]:
    assert dataset_2d == "901"
    dataset = nnunet_folders / "preprocessed" / "Dataset901_Balls"
    fold_split(load_dataset("901"), "2d", 0)  # writes splits_final.json
    running = Consortium(tmp_path, dataset, SITES)
    yield running
    running.stop()


def weights(result: Path) -> dict[str, torch.Tensor]:
    state = torch.load(result / "checkpoint_final.pth", weights_only=False)
    found: dict[str, torch.Tensor] = state["network_weights"]
    return found


def test_hospitals_train_together_as_if_they_were_one_machine(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium.start_server(*SHORT)
    for site in SITES:
        consortium.start_site(site)
    for site in SITES:
        consortium.approve(site)
    assert consortium.wait_for_server() == 0, consortium.said("server")

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "here"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    sites_file = tmp_path / "sites.json"
    sites_file.write_text(json.dumps(SITES))
    main(["901", "2d", "0", "--sites-file", str(sites_file), "-device", "cpu", *SHORT])
    here = next((tmp_path / "here").glob("*/*/fold_0"))

    ours, theirs = weights(consortium.result), weights(here)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pooled, together = (
        json.loads((folder / "validation" / "summary.json").read_text())
        for folder in (consortium.result, here)
    )
    assert pooled["mean"]["1"]["Dice"] == pytest.approx(together["mean"]["1"]["Dice"])
    assert "metric_per_case" not in pooled
