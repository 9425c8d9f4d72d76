"""Real processes on loopback: a coordinator and hospitals, each with folders of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nnunetv2_federated.flower.deployment.credentials import Address, provision

SITES = {
    "bern": ["case_00", "case_03", "case_06", "case_09"],
    "oslo": ["case_01", "case_04", "case_07", "case_10"],
    "lyon": ["case_02", "case_05", "case_08", "case_11"],
}
SHORT = ("--rounds", "2", "--iterations-per-epoch", "2", "--val-iterations", "1")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(found: Callable[[], bool], what: str, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.2)


class Consortium:
    """A coordinator and hospitals: each a process with folders of its own, and no one's images."""

    def __init__(
        self,
        folder: Path,
        dataset: Path,
        sites: dict[str, list[str]],
        *,
        host: str = "localhost",
        configuration: str = "2d",
        raw: Path | None = None,
    ) -> None:
        """Give each site its cases of a preprocessed dataset; of ``raw``, if that is given."""
        self.folder = folder
        self.dataset = dataset.name.removeprefix("Dataset")[:3]
        self.configuration = configuration
        self.port = free_port()
        self.credentials = folder / "credentials"
        self.namespaces: dict[str, str] = {}
        provision(self.credentials, Address(host, self.port), list(sites))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        if raw is not None:
            for site, cases in sites.items():
                self._hand_out(site, raw, cases)
            return
        self._prepare("server", dataset, None)
        for site, cases in sites.items():
            self._prepare(site, dataset, cases)

    def _hand_out(self, site: str, raw: Path, cases: list[str]) -> None:
        target = self.folder / site / "raw" / raw.name
        for part in ("imagesTr", "labelsTr"):
            (target / part).mkdir(parents=True)
            for file in (raw / part).iterdir():
                if file.name[: len(cases[0])] in cases:
                    shutil.copyfile(file, target / part / file.name)
        content = json.loads((raw / "dataset.json").read_text())
        (target / "dataset.json").write_text(json.dumps(content | {"numTraining": len(cases)}))

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
        if (dataset / "labelsTr.json").is_file():
            labels = json.loads((dataset / "labelsTr.json").read_text())
            own_labels = {case: label for case, label in labels.items() if case in cases}
            (target / "labelsTr.json").write_text(json.dumps(own_labels))
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
        """Run a module, or a script."""
        module = [] if Path(command[0]).suffix == ".py" else ["-m"]
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [*self.inside(name), sys.executable, *module, *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment(name),
                cwd=self.folder,
            )

    def inside(self, name: str) -> list[str]:
        """Command prefix for the network namespace of a process."""
        namespace = self.namespaces.get(name)
        return ["ip", "netns", "exec", namespace] if namespace else []

    def start_server(self, *flags: str) -> None:
        self.start(
            "server",
            *("nnunetv2_federated.cli.server", "--dataset", self.dataset, "--fold", "0"),
            *("--configuration", self.configuration, "-device", "cpu", *flags),
        )

    def start_planning(self, *flags: str) -> None:
        self.start(
            "server",
            *("nnunetv2_federated.cli.plan", "-d", "Dataset901_Balls", "-c", self.configuration),
            *("--server", f"localhost:{self.port}", *flags),
        )

    def start_proxy(self) -> None:
        folder = self.credentials / "server"
        with (self.folder / "proxy.out").open("ab") as out:
            self.processes["proxy"] = subprocess.Popen(
                [
                    *self.inside("server"),
                    *("nginx", "-p", folder, "-c", "nginx.conf", "-g", "daemon off;"),
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def start_site(self, site: str, *flags: str) -> None:
        bundle = self.credentials / "sites" / site / "site.toml"
        self.start(
            site,
            *("nnunetv2_federated.cli.site", self.dataset, "--site", bundle, "-device", "cpu"),
            *flags,
        )

    def said(self, name: str) -> str:
        file = self.folder / f"{name}.out"
        return file.read_text() if file.is_file() else ""

    def approve(self, site: str, what: str = "federation") -> None:
        """Wait until the site was asked, and agree, as its engineer would."""
        asked = f"asked to take part in {what} "
        wait_for(lambda: asked in self.said(site), f"{what} at {site}")
        found = self.said(site).split(asked)[-1][:12]
        bundle = self.credentials / "sites" / site / "site.toml"
        command = [self.dataset, "--site", bundle, "--approve", found]
        subprocess.run(
            [sys.executable, "-m", "nnunetv2_federated.cli.site", *command],
            env=self.environment(site),
            check=True,
        )

    def wait_until(self, name: str, text: str) -> None:
        wait_for(lambda: text in self.said(name), f"{text!r} of {name}")

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def superlink_pid(self) -> int:
        found = subprocess.run(
            ["pgrep", "-f", f"flower-superlink .*--port {self.port} "],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(found.stdout.split()[0])

    def wait_for_server(self, seconds: float = 300) -> int:
        return self.processes["server"].wait(seconds)

    @property
    def result(self) -> Path:
        return next((self.folder / "server" / "results").glob("*/*/fold_0"))

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            process.wait(60)


def run_all(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


class Network:
    """A namespace for the server and one for each site, joined by slow links."""

    def __init__(self, sites: Iterable[str]) -> None:
        self._sites = list(sites)
        prefix = f"nnfl{os.getpid()}"
        self.namespaces = {name: f"{prefix}-{name}" for name in ("server", *self._sites)}

    def open(self) -> None:
        server = self.namespaces["server"]
        for namespace in self.namespaces.values():
            run_all(f"ip netns add {namespace}", f"ip -n {namespace} link set lo up")
        for number, site in enumerate(self._sites, 1):
            own, here, there = self.namespaces[site], f"s{number}", "eth0"
            run_all(
                f"ip -n {server} link add {here} type veth peer name {there} netns {own}",
                f"ip -n {server} addr add 10.77.{number}.1/24 dev {here}",
                f"ip -n {own} addr add 10.77.{number}.2/24 dev {there}",
                f"ip -n {server} link set {here} up",
                f"ip -n {own} link set {there} up",
                f"ip -n {own} route add default via 10.77.{number}.1",
            )
            slow_down(server, here)
            slow_down(own, there)

    def close(self) -> None:
        for namespace in self.namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def slow_down(namespace: str, device: str) -> None:
    """40 ms and one packet in a hundred lost; 20 Mbit/s where the kernel has no netem."""
    add = f"ip netns exec {namespace} tc qdisc add dev {device} root"
    try:
        run_all(f"{add} netem delay 40ms loss 1%")
    except subprocess.CalledProcessError:
        run_all(f"{add} tbf rate 20mbit burst 32kbit latency 400ms")
