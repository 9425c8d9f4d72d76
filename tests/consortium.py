"""Real processes on loopback: a coordinator and hospitals, each with folders of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from commands import Command

from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision

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
        self._kills = folder / "kills"
        self.failing = False
        """Whether a fifth of the requests to the SuperLink fail, of whom is started then."""
        provision(self.credentials, Address(host, self.port), list(sites))
        self.processes: dict[str, Command | subprocess.Popen[bytes]] = {}
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
        for name_of_file in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(dataset / name_of_file, target / name_of_file)
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
        module: list[str | Path] = [] if Path(command[0]).suffix == ".py" else ["-m"]
        if self.failing:
            module = [Path(__file__).with_name("failing.py")]
        if self._kills.is_dir():
            module = [Path(__file__).with_name("killing.py"), name, self._kills]
        output = self.folder / f"{name}.out"
        if name not in self.namespaces:
            self.processes[name] = Command(
                [*module, *command], self.environment(name), self.folder, output
            )
            return
        with output.open("ab") as out:
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

    def start_silent_site(self, site: str, kind: str) -> None:
        """Start a site that takes a question of this kind and never answers it."""
        bundle = self.credentials / "sites" / site / "site.toml"
        self.start(site, Path(__file__).with_name("silent_site.py"), bundle, kind)

    def said(self, name: str) -> str:
        file = self.folder / f"{name}.out"
        return file.read_text() if file.is_file() else ""

    def all_said(self) -> str:
        """Return what everybody said and the SuperLink's log, the ends of it."""
        logs = [*self.folder.glob("*.out"), *self.folder.rglob("superlink.log")]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in logs)

    def approve(self, site: str, what: str = "federation") -> None:
        """Wait until the site was asked, and agree, as its engineer would."""
        asked = f"asked to take part in {what} "
        wait_for(lambda: asked in self.said(site), f"{what} at {site}")
        found = self.said(site).split(asked)[-1][:12]
        bundle = self.credentials / "sites" / site / "site.toml"
        arguments = (self.dataset, "--site", bundle, "--approve", found)
        output = self.folder / f"{site}.approval"
        command = ("-m", "nnunetv2_federated.cli.site", *arguments)
        approval = Command(command, self.environment(site), self.folder, output)
        assert approval.wait(60) == 0, output.read_text()

    def wait_until(self, name: str, text: str) -> None:
        wait_for(lambda: text in self.said(name), f"{text!r} of {name}")

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def plan_kills(self, name: str, places: dict[str, Sequence[str]]) -> None:
        """Let a process, each time it comes to a place, kill the next of the place's victims.

        Places are named by :func:`killing.place`.
        """
        for place, victims in places.items():
            folder = self._kills / name / place
            folder.mkdir(parents=True)
            for number, victim in enumerate(victims):
                (folder / f"{number:02d}_{victim}").touch()

    def see_through(self, restart: dict[str, Callable[[], None]], seconds: float = 1500) -> int:
        """Start again whoever is killed, until the server ends by itself; return its status."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, process in list(self.processes.items()):
                if process.poll() == -signal.SIGKILL:
                    restart[name]()
                elif name == "server" and process.returncode is not None:
                    return process.returncode
            time.sleep(0.2)
        raise AssertionError(f"not at the end after {seconds} s")

    def still_alive(self) -> list[str]:
        """Who was to be killed and was not."""
        return [str(file.relative_to(self._kills)) for file in self._kills.glob("*/*/*")]

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
    """A namespace for the server and one for each site, joined by long lines that lose packets."""

    def __init__(self, sites: Iterable[str]) -> None:
        self._sites = list(sites)
        prefix = f"nnfl{os.getpid()}"
        self.namespaces = {name: f"{prefix}-{name}" for name in ("server", *self._sites)}
        self.lines = Lines()

    def open(self) -> None:
        for namespace in self.namespaces.values():
            run_all(f"ip netns add {namespace}", f"ip -n {namespace} link set lo up")
        for number, site in enumerate(self._sites, 1):
            here, there = f"10.77.{number}.1", f"10.77.{number}.2"
            server, own = self.namespaces["server"], self.namespaces[site]
            ends = [f"nnfl{os.getpid()}{end}{number}" for end in "ab"]
            self.lines.add(*ends)
            for end, namespace, address in zip(ends, (server, own), (here, there), strict=True):
                peer = there if address == here else here
                run_all(
                    f"ip link set {end} netns {namespace}",
                    f"ip -n {namespace} addr add {address} peer {peer} dev {end}",
                    f"ip -n {namespace} link set {end} up",
                )
            run_all(f"ip -n {own} route add default via {here}")
        self.lines.start()

    def close(self) -> None:
        self.lines.stop()
        for namespace in self.namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


class Lines(threading.Thread):
    """Carry packets between pairs of TUN devices: each takes 40 ms, one in a hundred is lost.

    The kernel's netem would do it too, but containers' kernels often come without.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lost = 0
        self._other_end: dict[int, int] = {}
        self._stopped = threading.Event()

    def add(self, one: str, other: str) -> None:
        ends = [os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK) for _ in range(2)]
        for end, name in zip(ends, (one, other), strict=True):
            tunsetiff, iff_tun, iff_no_pi = 0x400454CA, 0x0001, 0x1000
            fcntl.ioctl(end, tunsetiff, struct.pack("16sH", name.encode(), iff_tun | iff_no_pi))
        self._other_end |= {ends[0]: ends[1], ends[1]: ends[0]}

    def run(self) -> None:
        chance = np.random.default_rng(1)
        under_way: deque[tuple[float, int, bytes]] = deque()
        while not self._stopped.is_set():
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.1
            for end in select.select(list(self._other_end), [], [], min(wait, 0.1))[0]:
                packet = os.read(end, 65536)
                if chance.random() < 0.01:
                    self.lost += 1
                else:
                    under_way.append((time.monotonic() + 0.04, self._other_end[end], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, packet = under_way.popleft()
                with contextlib.suppress(OSError):  # its end is not up yet, or no more
                    os.write(end, packet)

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive():
            self.join()
        for end in self._other_end:
            os.close(end)
