"""The value of a trial: Dice on validation batches that all trials share, with its noise.

A score keeps the counts of blocks of batches. From them follows, by the delete-one jackknife (Efron
and Stein 1981), how far the difference of two trials would move with other batches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.aggregation import dice_per_class, mean_dice
from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.evaluation import FEWEST_CASES
from nnunetv2_federated.federation.files import read_state, write_atomically
from nnunetv2_federated.federation.messages import BLOCKS, Validation

_FORMAT = 2
_TIE = 1e-9
"""Weight of the loss in a value: it ranks trials of the same Dice, such as those that do not tell
any foreground from background yet, and no others."""
_WORST_LOSS = 1000.0
_REMEDY = "delete it, and the same command scores the trial again."


@dataclass(frozen=True)
class Block:
    """Counts of voxels of each foreground class (of cases, for a classifier), over some batches."""

    tp: tuple[float, ...]
    fp: tuple[float, ...]
    fn: tuple[float, ...]
    iterations: int = 0
    loss: float | None = 0.0
    """Sum of the loss over the iterations; ``None`` if it is not finite."""

    @classmethod
    def of(cls, validations: Sequence[Validation]) -> Block:
        """Add the counts of sites."""
        tp, fp, fn = (
            tuple(sum(c) for c in zip(*(getattr(v, name) for v in validations), strict=True))
            for name in ("tp", "fp", "fn")
        )
        iterations = sum(v.iterations for v in validations)
        return cls(tp, fp, fn, iterations, _sum([v.loss for v in validations]))


@dataclass(frozen=True)
class Score:
    """Counts of all blocks, in their order."""

    blocks: tuple[Block, ...]

    @property
    def value(self) -> float:
        """Mean Dice of the classes that occur, from the counts of all blocks; NaN if none does.

        Of equal ones that of the smaller loss is larger, by next to nothing.
        """
        return _dice(self.blocks) - _TIE * self.loss

    @property
    def loss(self) -> float:
        """Mean validation loss, to six decimals; :data:`_WORST_LOSS` if it is not finite."""
        total = _sum([block.loss for block in self.blocks])
        iterations = sum(block.iterations for block in self.blocks)
        return _WORST_LOSS if total is None else round(total / max(1, iterations), 6)

    @property
    def noise(self) -> float:
        """Standard error of the value over batches; NaN with fewer than two blocks."""
        return _jackknife([_dice(rest) for rest in _without_each(self.blocks)])


def score_of_sites(sites: Iterable[Sequence[Validation]]) -> Score:
    """Add the counts of sites, block by block; a site may have fewer blocks than others."""
    blocks = zip_longest(*sites)
    return Score(tuple(Block.of([v for v in block if v is not None]) for block in blocks))


def blocks_for(cases: int, iterations: int) -> int:
    """Return in how many blocks a site on another machine tells its counts.

    A block of few cases would nearly describe them: each has at least two batches, of which the
    last may be of a single case, and there are no more than one for three cases.

    Parameters
    ----------
    cases
        Validation cases of the site.
    iterations
        Validation iterations.
    """
    return max(1, min(BLOCKS, cases // FEWEST_CASES, iterations // 2))


def noise_of_difference(ours: Score, theirs: Score) -> float:
    """Return the standard error of the difference of two values over the batches they share.

    It does not say how far the difference would move with another seed of the training.

    Parameters
    ----------
    ours, theirs
        Scores on the same blocks of batches.

    Returns
    -------
    float
        NaN with fewer than two blocks, or other blocks.
    """
    if len(ours.blocks) != len(theirs.blocks):
        return math.nan
    pairs = zip(_without_each(ours.blocks), _without_each(theirs.blocks), strict=True)
    return _jackknife([_dice(a) - _dice(b) for a, b in pairs])


def score_file(folder: Path, finished_rounds: int) -> Path:
    """Return the file of a trial's score after so many rounds."""
    return folder / f"score_{finished_rounds:05d}.json"


def write_score(path: Path, score: Score) -> None:
    """Write a score."""
    blocks = [asdict(block) for block in score.blocks]
    write_atomically(path, json.dumps({"format": _FORMAT, "blocks": blocks}))


def read_score(path: Path) -> Score | None:
    """Read what :func:`write_score` wrote; ``None`` if there is none.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or is of another format.
    """
    content = read_state(path, _FORMAT, _REMEDY)
    if content is None:
        return None
    try:
        return Score(tuple(map(_read_block, content["blocks"])))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {_REMEDY}") from error


def _read_block(content: Mapping[str, Any]) -> Block:
    tp, fp, fn = (tuple(map(float, content[name])) for name in _COUNTS)
    loss = content["loss"]
    return Block(tp, fp, fn, int(content["iterations"]), None if loss is None else float(loss))


def _sum(losses: Sequence[float | None]) -> float | None:
    """Return a sum; ``None`` if a part of it is not finite."""
    finite = [loss for loss in losses if loss is not None]
    return sum(finite) if len(finite) == len(losses) else None


def _dice(blocks: Sequence[Block]) -> float:
    sums = ([sum(c) for c in zip(*(getattr(b, n) for b in blocks), strict=True)] for n in _COUNTS)
    return mean_dice(dice_per_class(*sums))


_COUNTS = ("tp", "fp", "fn")


def _without_each(blocks: Sequence[Block]) -> list[list[Block]]:
    return [[b for j, b in enumerate(blocks) if j != i] for i in range(len(blocks))]


def _jackknife(values: Sequence[float]) -> float:
    """Return the standard error of a statistic, from its values without each of the blocks."""
    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    return math.sqrt((n - 1) / n * sum((value - mean) ** 2 for value in values))
