"""What federating costs beside stock nnU-Net: time, bytes, memory, aggregation.

``python benchmarks/overhead.py`` makes a small dataset in a temporary folder and prints one table.
Every measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("_worker.py")
CASES = 60

Row = tuple[str, str, str, float, float | None]
"""What, ours, the yardstick's, their ratio, and the ratio that is allowed (if any)."""


class Bench:
    """Runs workers against one dataset in a temporary folder."""

    def __init__(self, base: Path, device: str) -> None:
        self.base = base
        self.device = device
        self._prepared = False

    def work(self, kind: str, **arguments: object) -> dict[str, Any]:
        """Run one worker and return what it measured."""
        results = Path(tempfile.mkdtemp(dir=self.base))
        environment = {
            "nnUNet_n_proc_DA": "0",  # augmentation in the same process: no workers to fight for
            **os.environ,  # set nnUNet_n_proc_DA yourself to measure with workers
            "nnUNet_raw": str(self.base / "raw"),
            "nnUNet_preprocessed": str(self.base / "preprocessed"),
            "nnUNet_results": str(results),
            "nnUNet_def_n_proc": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        if kind == "prepare":
            del environment["nnUNet_n_proc_DA"]  # planning refuses 0
        answer = results / "result.json"
        finished = subprocess.run(
            [sys.executable, str(WORKER), kind, json.dumps(arguments), str(answer)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            raise SystemExit(f"{kind} failed:\n{finished.stderr}")
        measured: dict[str, Any] = json.loads(answer.read_text())
        return measured

    def federation(self, sites: int, **settings: object) -> dict[str, Any]:
        """Run a federation on the dataset."""
        self._prepare()
        return self.work("federation", sites=sites, device=self.device, settings=settings)

    def stock(self, **arguments: object) -> dict[str, Any]:
        """Run a stock training on the dataset."""
        self._prepare()
        return self.work("stock", device=self.device, **arguments)

    def _prepare(self) -> None:
        if not self._prepared:
            self.work("prepare", cases=CASES)
            self._prepared = True


def overhead(bench: Bench, args: argparse.Namespace) -> Iterator[Row]:
    """Three sites against stock nnU-Net: as many training and validation iterations in both."""
    sites = 3
    stock: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []
    validated: list[dict[str, float]] = []
    for _ in range(args.repeats):
        stock.append(
            bench.stock(
                epochs=sites * args.rounds,
                iterations=args.iterations,
                val_iterations=args.val_iterations,
            )
        )
        for runs, validation in ((plain, False), (validated, True)):
            runs.append(
                bench.federation(
                    sites,
                    rounds=args.rounds,
                    iterations_per_epoch=args.iterations,
                    val_iterations=args.val_iterations,
                    global_validation=validation,
                )
            )
    theirs = _median(stock, "seconds")
    unplotted = theirs - _median(stock, "plots")
    for what, seconds, yardstick, limit in (
        ("rounds / stock", _median(plain, "seconds"), theirs, 1.03),
        ("rounds / stock without its plots", _median(plain, "seconds"), unplotted, 1.03),
        ("  with global validation", _median(validated, "seconds"), theirs, None),
        ("  with all the server writes", _median(plain, "wall"), theirs, None),
    ):
        yield what, f"{seconds:.2f} s", f"{yardstick:.2f} s", seconds / yardstick, limit


def _median(results: list[dict[str, float]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def message_bytes(bench: Bench, args: argparse.Namespace) -> Iterator[Row]:
    """Mean message of two rounds, weights and payload, against 4 bytes a parameter."""
    del args
    measured = bench.federation(2, rounds=2, iterations_per_epoch=1, val_iterations=1)
    unique = 4 * measured["parameters"]
    for way in ("down", "up"):
        size = measured[f"bytes_{way}"]
        what = f"bytes {way} a message / 4 bytes a parameter"
        yield what, f"{size:.0f} B", f"{unique} B", size / unique, 1.01


def memory(bench: Bench, args: argparse.Namespace) -> Iterator[Row]:
    """Peak memory of a federation that keeps one trainer alive."""
    many, few = (
        bench.federation(
            sites, rounds=1, iterations_per_epoch=1, val_iterations=1, resident_trainers=1
        )["peak_bytes"]
        for sites in (args.sites, 2)
    )
    what = f"peak memory, {args.sites} sites / 2 sites"
    yield what, f"{many / 2**20:.0f} MiB", f"{few / 2**20:.0f} MiB", many / few, 1.3


def aggregation(bench: Bench, args: argparse.Namespace) -> Iterator[Row]:
    """Twenty replies of 33 million weights against numpy adding as many vectors in place."""
    del args
    measured = bench.work("aggregation", replies=20, parameters=33_000_000)
    yardstick = measured["numpy"]
    for what, key, limit in (
        ("running mean of 20 x 33 M / numpy sum", "running_mean", 3.0),
        ("  with unpacking and checks", "strategy", None),
    ):
        seconds = measured[key]
        yield what, f"{seconds:.2f} s", f"{yardstick:.2f} s", seconds / yardstick, limit


PARTS: dict[str, Callable[[Bench, argparse.Namespace], Iterator[Row]]] = {
    "overhead": overhead,
    "bytes": message_bytes,
    "memory": memory,
    "aggregation": aggregation,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    parser.add_argument("--rounds", type=int, default=3, help="of the overhead part (3)")
    parser.add_argument("--iterations", type=int, default=50, help="training, a round (50)")
    parser.add_argument("--val-iterations", type=int, default=10, help="a round (10)")
    parser.add_argument("--repeats", type=int, default=1, help="of the overhead part; median (1)")
    parser.add_argument("--sites", type=int, default=20, help="of the memory part (20)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    args = parser.parse_args()
    print(f"{'':46} {'here':>14} {'yardstick':>14} {'ratio':>7} {'allowed':>8}")
    with tempfile.TemporaryDirectory() as base:
        for name in ("raw", "preprocessed"):
            (Path(base) / name).mkdir()
        bench = Bench(Path(base), args.device)
        for name, part in PARTS.items():
            if args.only not in (None, name):
                continue
            for what, ours, yardstick, ratio, limit in part(bench, args):
                allowed = "" if limit is None else f"{limit:.2f}"
                print(f"{what:46} {ours:>14} {yardstick:>14} {ratio:7.4f} {allowed:>8}", flush=True)


if __name__ == "__main__":
    main()
