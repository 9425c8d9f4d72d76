"""The value of a trial and its noise; numbers by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.messages import Validation
from nnunetv2_federated.federation.objective import (
    Block,
    Score,
    blocks_for,
    noise_of_difference,
    read_score,
    score_file,
    score_of_sites,
    write_score,
)


def a_score(*counts: tuple[float, float, float]) -> Score:
    """Counts (tp, fp, fn) of one class in each block."""
    return Score(tuple(Block((tp,), (fp,), (fn,)) for tp, fp, fn in counts))


def test_the_value_is_dice_of_all_counts_of_all_sites() -> None:
    sites = [
        Validation.of(1, 0.5, [3.0, 0.0], [1.0, 0.0], [0.0, 0.0]),
        Validation.of(1, 0.5, [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]),
    ]
    block = Block.of(sites)
    assert block == Block((4.0, 0.0), (1.0, 0.0), (1.0, 0.0), 2, 1.0)
    # the second class does not occur
    assert Score((block,)).value == pytest.approx(8 / 10)
    assert math.isnan(a_score((0, 0, 0)).value)


def test_of_equal_dice_the_smaller_loss_goes_on_and_of_unequal_the_larger_dice() -> None:
    def scored(tp: float, loss: float) -> Score:
        """Two blocks of two iterations, as of a model that calls everything foreground."""
        part = Validation.of(2, 2 * loss, [tp], [10.0 - tp], [0.0])
        return Score((Block.of([part]), Block.of([part])))

    assert scored(5, 0.25).loss == 0.25
    assert scored(5, 0.25).value > scored(5, 0.75).value
    assert scored(5, math.nan).value < scored(5, 100.0).value
    assert scored(5.001, 100.0).value > scored(5, 0.25).value
    assert scored(5, 0.25).value == pytest.approx(20 / 30)


def test_a_site_with_few_cases_tells_fewer_blocks() -> None:
    assert [blocks_for(cases, 100) for cases in (0, 1, 5, 6, 29, 30)] == [1, 1, 1, 2, 9, 10]
    # two batches to each, as the last of a classifier's may be of one case
    assert [blocks_for(500, iterations) for iterations in (1, 3, 4, 19, 20)] == [1, 1, 2, 9, 10]
    validation = Validation.of(1, 0.5, [3.0], [1.0], [0.0])
    blocks = score_of_sites([[validation] * 2, [validation]]).blocks
    assert [block.tp for block in blocks] == [(6.0,), (3.0,)]


def test_the_noise_is_the_jackknifes() -> None:
    score = a_score((1, 0, 0), (1, 2, 0), (1, 1, 0))
    # without each block: 4 / 7, 4 / 5 and 4 / 6
    values = [4 / 7, 4 / 5, 4 / 6]
    mean = sum(values) / 3
    by_hand = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in values))
    assert score.noise == pytest.approx(by_hand)
    assert math.isnan(a_score((1, 0, 0)).noise)


def test_what_two_trials_share_is_no_noise_of_their_difference() -> None:
    score = a_score((1, 0, 0), (1, 2, 0), (1, 1, 0))
    assert noise_of_difference(score, score) == 0
    assert noise_of_difference(score, a_score((1, 1, 0), (1, 1, 0), (1, 1, 0))) > 0
    assert math.isnan(noise_of_difference(score, a_score((1, 0, 0))))


def test_a_score_on_disk(tmp_path: Path) -> None:
    score = a_score((1, 0, 0), (1, 2, 0))
    path = score_file(tmp_path, 14)
    assert path.name == "score_00014.json"
    assert read_score(path) is None
    write_score(path, score)
    assert json.loads(path.read_text())["format"] == 2
    assert read_score(path) == score
    for damaged in ("", '{"format": 2}', '{"format": 1}', '{"format": 2, "blocks": [{"tp": 1}]}'):
        path.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"score_00014\.json"):
            read_score(path)
