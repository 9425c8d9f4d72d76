"""Randomness that nobody can compute again: keyed by the operating system, never by ``--seed``.

A run's seed stands in its ``run.json``. Noise that follows from it could be subtracted by whoever
reads that file, and so could noise that is drawn again for a round that is repeated.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch

_STATE_START, _STATE_WORDS = 24, 624
"""Where torch's state of a CPU generator has the words of its Mersenne Twister, 8 bytes each."""
_SEED_BITS = 63
"""Bits of a seed that torch takes whatever its sign."""


def keyed_generator(device: torch.device) -> torch.Generator:
    """Return a new generator with a key from ``os.urandom``.

    On a GPU it is torch's Philox with a key of 63 bits. On a CPU it is torch's Mersenne Twister,
    all of whose 624 words come from the operating system: ``manual_seed`` takes 32 bits of a seed
    there, and four billion seeds can be tried. Neither is a cryptographic generator; a new one for
    each release keeps the noise of one release from telling that of another.

    Parameters
    ----------
    device
        Device of the tensors that are drawn.
    """
    generator = torch.Generator(device)
    if device.type != "cpu":
        generator.manual_seed(_os_integer(_SEED_BITS))
        return generator
    state = generator.get_state()
    words = np.frombuffer(os.urandom(4 * _STATE_WORDS), np.uint32).astype(np.uint64)
    state[_STATE_START : _STATE_START + words.nbytes] = torch.from_numpy(words.view(np.uint8))
    generator.set_state(state)
    return generator


def forget_seed() -> None:
    """Seed the generators of Python, NumPy and torch from the operating system.

    Crops, augmentation and dropout draw from them. With a seed that is known, what is drawn for a
    patient would follow from the patients before, and his gradient would tell of theirs.
    """
    random.seed(os.urandom(32))
    np.random.seed(  # noqa: NPY002  # batchgenerators draws from the legacy generator
        np.frombuffer(os.urandom(32), np.uint32)
    )
    seed = _os_integer(_SEED_BITS)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # where CUDA is built in and absent, the line above formats a traceback for it each time
        torch.default_generator.manual_seed(seed)


def _os_integer(bits: int) -> int:
    return random.SystemRandom().getrandbits(bits)
