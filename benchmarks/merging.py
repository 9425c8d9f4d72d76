"""How long the server takes to pool the fingerprints of many sites.

``python benchmarks/merging.py`` prints seconds for 10, 100 and 1,000 sites: pooling what arrived,
and the whole way from JSON text to nnU-Net's ``dataset_fingerprint``.
"""

from __future__ import annotations

import time

import numpy as np

from nnunetv2_federated.federation.fingerprint import (
    CaseFingerprint,
    SiteFingerprint,
    nnunet_fingerprint,
    pool_fingerprints,
    summarise_cases,
)
from nnunetv2_federated.federation.intensities import Channel

_DISTINCT = 20
"""Sites that are really summarised; the others repeat them under other names."""


def site_text(rng: np.random.Generator, number: int) -> str:
    """Summarise ten MR-like cases of a site."""
    cases = [
        CaseFingerprint(
            (float(rng.choice([1.0, 1.5, 3.0])), 0.8, 0.8),
            tuple(int(n) for n in rng.integers(20, 400, 3)),
            float(rng.uniform(0.5, 1)),
            (Channel.of(rng.gamma(2, 300, 20_000).astype(np.float32)),),
        )
        for _ in range(10)
    ]
    return summarise_cases(f"site_{number:04d}", cases).to_json()


def main() -> None:
    """Print a table."""
    rng = np.random.default_rng(0)
    texts = [site_text(rng, number) for number in range(_DISTINCT)]
    channel = SiteFingerprint.from_json(texts[0]).channels[0]
    bins = 0 if channel is None else len(channel.first)
    print(f"{bins} bins and {len(texts[0]) / 1000:.0f} kB of JSON a site")
    print(f"{'sites':>6} {'pool':>8} {'with JSON and checks':>22}")
    for count in (10, 100, 1000):
        start = time.perf_counter()
        sites = [SiteFingerprint.from_json(texts[i % _DISTINCT]) for i in range(count)]
        read = time.perf_counter()
        nnunet_fingerprint(pool_fingerprints(sites))
        end = time.perf_counter()
        print(f"{count:>6} {end - read:>6.2f} s {end - start:>20.2f} s")


if __name__ == "__main__":
    main()
