"""The federation of docs/deployment.md on this machine, its commands taken word by word.

``python benchmarks/deployment_page.py FOLDER`` prepares the page's dataset in FOLDER unless it is
there, runs the block of commands in four terminals, says yes wherever a site asks, and prints how
long it took and how much memory it needed. The port is a free one, all else is as on the page.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
_QUESTION = "take part? [y/N] "
_LOOK_SECONDS = 1.0
_PATIENCE = 1800.0
"""Seconds for the whole, on a machine with much else to do."""


@dataclass(frozen=True)
class Commands:
    """What the page's section "Try it" tells to type."""

    dataset: tuple[str, ...]
    """Make the dataset."""
    everywhere: tuple[str, ...]
    """Variables to export in every terminal."""
    provision: str
    server: str
    sites: tuple[str, ...]


def read_commands(page: str, port: int) -> Commands:
    """Read the commands of the section "Try it".

    Parameters
    ----------
    page
        Text of docs/deployment.md.
    port
        In place of the page's.
    """
    section = page.partition("## Try it")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ").replace("localhost:9092", f"localhost:{port}")
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    lines = [" ".join(line.split()) for line in lines if line and not line.startswith("#")]

    def naming(command: str) -> tuple[str, ...]:
        return tuple(line for line in lines if command in line)

    everywhere = naming("export ")
    provision, server = naming("federated_provision"), naming("federated_server")
    sites = naming("federated_site")
    known = {*everywhere, *provision, *server, *sites}
    return Commands(
        dataset=tuple(line for line in lines if line not in known),
        everywhere=everywhere,
        provision=provision[0],
        server=server[0],
        sites=sites,
    )


class Terminal:
    """A terminal in which one command runs, and someone says yes when asked to take part.

    Parameters
    ----------
    command
        As typed.
    environment, folder
        Where it is typed.
    """

    def __init__(self, command: str, environment: Mapping[str, str], folder: Path) -> None:
        self._keyboard, screen = pty.openpty()
        self.command = command
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            env={**environment, "COLUMNS": "200", "TERM": "xterm"},
            cwd=folder,
            start_new_session=True,
            # a terminal's commands hear Ctrl-C, whoever started this one
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        os.close(screen)
        self.said = ""
        self._answered = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._keyboard, 65536)
            except OSError:  # the command ended
                return
            self.said += data.decode(errors="replace")
            if self.said.count(_QUESTION) > self._answered:
                self._answered += 1
                os.write(self._keyboard, b"y\n")

    def press_ctrl_c(self) -> int:
        """Stop the command as its user would; return its exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        status = self.process.wait(60)
        self._reader.join(5)
        return status

    def close(self) -> None:
        """End whatever still runs in the terminal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Use:
    """What the processes below this one used at most."""

    processes: int = 0
    resident: int = 0
    """Bytes, where a page that several processes share counts for each of them."""
    proportional: int = 0
    """Bytes, where such a page counts once."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Use:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            found = [use for pid in _descendants(os.getpid()) if (use := _memory(pid)) is not None]
            self.processes = max(self.processes, len(found))
            self.resident = max(self.resident, sum(rss for rss, _ in found))
            self.proportional = max(self.proportional, sum(pss for _, pss in found))


def _descendants(root: int) -> Iterator[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    waiting = list(parents.get(root, []))
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += parents.get(pid, [])


def _memory(pid: int) -> tuple[int, int] | None:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = {name: 1024 * int(size) for name, size in re.findall(r"^(Rss|Pss): +(\d+)", text, re.M)}
    return found.get("Rss", 0), found.get("Pss", 0)


def main() -> None:
    """Run the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        commands = read_commands(PAGE.read_text(encoding="utf-8"), listener.getsockname()[1])
    names = ("raw", "preprocessed", "results")
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **{f"nnUNet_{name}": str(folder / name) for name in names}}
    if not any((folder / "preprocessed").iterdir()):
        for command in commands.dataset:
            subprocess.run(shlex.split(command), env=environment, cwd=PAGE.parents[1], check=True)
    for line in commands.everywhere:
        name, _, value = line.removeprefix("export ").partition("=")
        environment[name] = value

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the terminals are closed
    terminals: list[Terminal] = []
    started = time.monotonic()
    try:
        with Use() as use:
            subprocess.run(shlex.split(commands.provision), env=environment, cwd=folder, check=True)
            terminals += [
                Terminal(command, environment, folder)
                for command in (commands.server, *commands.sites)
            ]
            status = terminals[0].process.wait(_PATIENCE)
            seconds = time.monotonic() - started
        stopped = [terminal.press_ctrl_c() for terminal in terminals[1:]]
    finally:
        for terminal in terminals:
            terminal.close()
            print(f"$ {terminal.command}\n{terminal.said}".replace("\r", ""))
    print(
        f"{seconds:.0f} s, at most {use.processes} processes with {use.resident / 1e9:.1f} GB "
        f"resident ({use.proportional / 1e9:.1f} GB with shared pages counted once)"
    )
    sys.exit(status or max(stopped))


if __name__ == "__main__":
    main()
