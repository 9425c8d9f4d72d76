"""Progress of work that is done case by case."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from nnunetv2_federated.federation.progress import Progress

Item = TypeVar("Item")

_SECONDS = 60.0
"""Seconds between two lines in a file."""


def counted(
    items: Iterable[Item],
    title: str,
    total: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """Yield items and show how many there were: a bar on a terminal, else a line a minute.

    Parameters
    ----------
    items
        Results of the work, one for each case.
    title
        Beginning of the bar and of each line.
    total
        Number of items.
    clock
        Returns seconds that only grow.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, title, total)
        return
    progress, said = Progress(clock, total), clock()
    for number, item in enumerate(items, 1):
        yield item
        left = progress.finished(number)
        if left is not None and clock() - said >= _SECONDS:
            said = clock()
            tqdm.write(f"{title}: {number} of {total} cases, {left} left", file=sys.stderr)
