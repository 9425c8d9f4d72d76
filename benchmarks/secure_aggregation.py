"""What secure aggregation costs a site and the server: ``python benchmarks/secure_aggregation.py``.

Everything is done as in a round, without a network: one site and the server are measured, the
other sites have the same update and other weights, so that each rounds it differently. The
yardstick is the running mean that a server makes of updates without masks. Memory is what a stage
allocates, in vectors; what it is given is not in it: at a site its update, mapped from disk, at the
server the sum so far, or a vector that has come.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from nnunetv2_federated.federation.aggregation import RunningMean
from nnunetv2_federated.federation.payload import Payload
from nnunetv2_federated.secure.arithmetic import Ring, rounding_error
from nnunetv2_federated.secure.contribution import Contribution
from nnunetv2_federated.secure.messages import RoundTerms
from nnunetv2_federated.secure.roster import Member, Roster
from nnunetv2_federated.secure.server_side import ServerSide
from nnunetv2_federated.secure.server_state import ServerState
from nnunetv2_federated.secure.shares import usual_minimum
from nnunetv2_federated.secure.site_side import SiteSide
from nnunetv2_federated.secure.site_state import SiteState

STAGES = ("state", "share", "mask", "confirm", "open", "mean")
COUNTS = 40
MEASURED = "site000"


@dataclass
class Meter:
    """CPU seconds, bytes on the way up and memory of one site and the server, by stage."""

    memory: bool
    """Measure memory, and not time: watching allocations takes time of its own."""
    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    peak: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    up: int = 0

    @contextmanager
    def of(self, who: str, stage: str) -> Iterator[None]:
        """Measure what a side does within."""
        if self.memory:
            tracemalloc.start()
        started = time.process_time()
        try:
            yield
        finally:
            self.seconds[who, stage] += time.process_time() - started
            if self.memory:
                self.peak[who] = max(self.peak[who], tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()


def terms_of(roster: Roster, parameters: int, largest_change: float) -> RoundTerms:
    zeros, sites = "0" * 64, len(roster.keys)
    return RoundTerms(
        *("run1", zeros, 0, zeros, zeros, roster.hash()),
        *(10 * sites, largest_change, usual_minimum(sites), parameters, COUNTS, 2),
    )


class Round:
    """One masked sum with a measured site and server."""

    def __init__(self, change: np.ndarray, sites: int, largest_change: float, meter: Meter) -> None:
        self.meter = meter
        keys = {f"site{i:03d}": ec.generate_private_key(ec.SECP384R1()) for i in range(sites)}
        self.roster = Roster.of({name: key.public_key() for name, key in keys.items()})
        self.terms = terms_of(self.roster, change.size, largest_change)
        tail = ((7,) * COUNTS, (0.5, 0.25))
        weights = {name: 10.0 - 0.01 * i for i, name in enumerate(keys)}  # some were late
        self.parts = {name: Contribution(change, weight, *tail) for name, weight in weights.items()}
        self.sides = {n: SiteSide(Member(n, key, self.roster)) for n, key in keys.items()}
        self.states: dict[str, SiteState] = {}
        self.server = ServerSide(self.roster, ServerState(self.terms))

    @contextmanager
    def of(self, name: str, stage: str) -> Iterator[None]:
        """Measure a site if it is the measured one."""
        if name != MEASURED:
            yield
            return
        with self.meter.of("site", stage):
            yield

    def up(self, name: str, answer: Payload, vector: Ring | None = None) -> None:
        """Count what the measured site sends."""
        if name == MEASURED:
            self.meter.up += len(answer.to_json()) + (0 if vector is None else vector.nbytes)

    def run(self, lost: int) -> tuple[float, float]:
        """Go through all stages; return the largest and the mean square error of the mean."""
        meter, server, states = self.meter, self.server, self.states
        for name, side in self.sides.items():
            with self.of(name, "state"):
                step = side.state_keys(self.terms, self.parts[name], None)
            states[name] = step.state
            self.up(name, step.answer)
            with meter.of("server", "state"):
                server.take_statement(name, step.answer)
        question = server.share_question()
        for name, side in self.sides.items():
            with self.of(name, "share"):
                shared = side.share(states[name], question)
            states[name] = shared.state
            self.up(name, shared.answer)
            with meter.of("server", "share"):
                server.take_shares(name, shared.answer)
        with meter.of("server", "share"):
            questions = server.mask_questions()
        survivors = sorted(self.sides)[: len(self.sides) - lost]
        for name in survivors:
            with self.of(name, "mask"):
                masked = self.sides[name].mask(states[name], questions[name], self.parts[name])
            states[name] = masked.state
            self.up(name, masked.answer, masked.vector)
            with meter.of("server", "mask"):
                server.take_masked(name, masked.answer, masked.vector)
            del masked
        self._open(survivors)
        with meter.of("server", "mean"):
            mean = server.mean()
        error = mean.change - self.parts[MEASURED].change.astype(np.float64)
        return float(np.abs(error).max()), float(np.sqrt(np.mean(error**2)))

    def _open(self, survivors: list[str]) -> None:
        confirm = self.server.confirm_question()
        for name in survivors:
            with self.of(name, "confirm"):
                confirmed = self.sides[name].confirm(self.states[name], confirm)
            self.states[name] = confirmed.state
            self.up(name, confirmed.answer)
            with self.meter.of("server", "confirm"):
                self.server.take_confirmed(name, confirmed.answer)
        question = self.server.open_question()
        for name in survivors:
            with self.of(name, "open"):
                opened = self.sides[name].open_shares(self.states[name], question)
            self.up(name, opened.answer)
            with self.meter.of("server", "open"):
                self.server.take_opened(name, opened.answer)


def plain_seconds(change: np.ndarray, sites: int) -> float:
    """Return the CPU seconds of a server that adds up updates without masks."""
    mean = RunningMean()
    started = time.process_time()
    for _ in range(sites):
        mean.add(change, 10.0)
    return time.process_time() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=33_000_000)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--lost", type=int, default=0, help="sites whose vectors never come")
    parser.add_argument("--secure-range", type=float, default=64.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "change.npy"
        rng = np.random.default_rng(0)
        np.save(path, rng.standard_normal(chosen.parameters, dtype=np.float32) * np.float32(1e-3))
        change = np.load(path, mmap_mode="r")
        measure(change, chosen.sites, chosen.lost, chosen.secure_range)


def measure(change: np.ndarray, sites: int, lost: int, largest_change: float) -> None:
    """Measure time, then memory, and print both."""
    times, memory = Meter(memory=False), Meter(memory=True)
    largest, rms = Round(change, sites, largest_change, times).run(lost)
    Round(change, sites, largest_change, memory).run(lost)
    print(f"{change.size:,} parameters, {sites} sites, {lost} lost, range {largest_change:g}\n")
    print("| CPU s | " + " | ".join(STAGES) + " | together | memory (vectors) |")
    print("|---" * (len(STAGES) + 3) + "|")
    for who in ("site", "server"):
        row = [times.seconds.get((who, stage), 0.0) for stage in STAGES]
        cells = " | ".join(f"{seconds:.3f}" for seconds in row)
        vectors = memory.peak[who] / change.nbytes
        print(f"| {who} | {cells} | {sum(row):.2f} | {vectors:.2f} |")
    print(f"| server without masks | | | | | | | {plain_seconds(change, sites):.2f} | |\n")
    beside = times.up - change.nbytes
    print(f"bytes up of a site: {times.up:,}, of which {beside:,} beside the vector")
    bound = rounding_error(sites - lost, largest_change, (sites - lost) / sites)
    print(f"error of the mean: rms {rms:.2g}, largest {largest:.2g}, bound {bound:.2g} + float32's")
    print(f"peak of the whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:,} kB")


if __name__ == "__main__":
    main()
