"""What compressing would save of a message: ``python benchmarks/compression.py STATE STATE``.

Takes two copies of a run's ``federation/state.pt``, after neighbouring rounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import blosc2
import numpy as np
import torch

CODECS = {"lz4": blosc2.Codec.LZ4, "zstd": blosc2.Codec.ZSTD}


def main() -> None:
    """Print a line for each content and codec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("states", type=Path, nargs=2)
    before, after = (
        torch.load(path, map_location="cpu", weights_only=True)["weights"]
        for path in parser.parse_args().states
    )
    change = after - before
    print(f"{after.numel():,} values, {(change == 0).float().mean():.2%} did not change")
    for content, tensor in (
        ("weights, float32", after),
        ("change, float32", change),
        ("change, bfloat16", change.to(torch.bfloat16).view(torch.int16)),
    ):
        measure(content, tensor.numpy())


def measure(content: str, array: np.ndarray) -> None:
    """Compress in one thread, bits of a kind side by side, as Blosc's users do with numbers."""
    for name, codec in CODECS.items():
        started = time.perf_counter()
        compressed = blosc2.compress2(
            array,
            codec=codec,
            clevel=5,
            filters=[blosc2.Filter.BITSHUFFLE],
            typesize=array.itemsize,
            nthreads=1,
        )
        seconds = time.perf_counter() - started
        print(
            f"{content:<18}{name:<6}{len(compressed) / array.nbytes:.2f} of its size, "
            f"{1000 * seconds / (array.nbytes / 1e6):.1f} ms per MB"
        )


if __name__ == "__main__":
    main()
