"""nnU-Net's rules for the best configuration, with means by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nnunetv2_federated.federation.best_configuration import (
    Candidate,
    candidates,
    choose_best,
    most_questions,
)

LABELS = {"1": (1,), "2": (2,)}
FULL = ("3d_fullres",)


def summary(one: float, two: float) -> dict[str, Any]:
    return {
        "foreground_mean": {"Dice": (one + two) / 2},
        "mean": {"1": {"Dice": one}, "2": {"Dice": two}},
    }


class Scores:
    """Answers with means by hand, and keeps what was asked."""

    def __init__(self, found: Mapping[tuple[Any, ...], dict[str, Any]]) -> None:
        self._found = found
        self.asked: list[Candidate] = []

    def __call__(self, candidate: Candidate) -> dict[str, Any]:
        self.asked.append(candidate)
        return self._found[candidate.configurations, candidate.removals]


def scores(**of_full: tuple[float, float]) -> Scores:
    """Means of 2d, of 3d_fullres and of both, and of 3d_fullres postprocessed."""
    names = {"fg": ((1, 2),), "one": ((1,),), "two": ((2,),)}
    names |= {"fg_one": ((1, 2), (1,)), "fg_two": ((1, 2), (2,)), "one_two": ((1,), (2,))}
    names |= {"fg_one_two": ((1, 2), (1,), (2,))}
    found: dict[tuple[Any, ...], dict[str, Any]] = {
        (("2d",), ()): summary(0.5, 0.7),
        (FULL, ()): summary(0.75, 0.5),
        (("2d", "3d_fullres"), ()): summary(0.75, 0.5),
    }
    found |= {(FULL, names[name]): summary(*means) for name, means in of_full.items()}
    return Scores(found)


def test_of_equal_ones_the_simpler_is_chosen_and_nothing_is_done_that_changes_nothing() -> None:
    asked = scores(fg=(0.75, 0.5), one=(0.75, 0.5), two=(0.75, 0.5))
    best = choose_best(["2d", "3d_fullres"], LABELS, (1, 2), asked, ensembles=True)
    assert best.chosen == Candidate(FULL)
    assert best.summary == summary(0.75, 0.5)
    assert len(asked.asked) == most_questions(2, 2, ensembles=True) == 6


@pytest.mark.parametrize(
    ("of_full", "removals"),
    [
        # a better mean, but a class is worse: not of all foreground
        ({"fg": (0.9, 0.49), "one": (0.75, 0.5), "two": (0.75, 0.5)}, ()),
        ({"fg": (0.9, 0.5), "fg_one": (0.9, 0.5), "fg_two": (0.9, 0.5)}, ((1, 2),)),
        # of a class: only its own Dice counts, and the next is tried on what was done before
        ({"fg": (0.7, 0.5), "one": (0.76, 0.1), "one_two": (0.2, 0.11)}, ((1,), (2,))),
        ({"fg": (0.8, 0.6), "fg_one": (0.8, 0.6), "fg_two": (0.7, 0.61)}, ((1, 2), (2,))),
    ],
)
def test_postprocessing_is_what_makes_it_better(
    of_full: dict[str, tuple[float, float]], removals: tuple[tuple[int, ...], ...]
) -> None:
    best = choose_best(["2d", "3d_fullres"], LABELS, (1, 2), scores(**of_full), ensembles=True)
    assert best.chosen == Candidate(FULL, removals)


def test_a_single_class_is_not_postprocessed_twice() -> None:
    def score(candidate: Candidate) -> dict[str, Any]:
        dice = 0.8 if candidate.removals else 0.7
        return {"foreground_mean": {"Dice": dice}, "mean": {"1": {"Dice": dice}}}

    best = choose_best(["2d"], {"1": (1,)}, (1,), score, ensembles=False)
    assert best.chosen.removals == ((1,),)
    assert most_questions(1, 1, ensembles=False) == 2


def test_ensembles_come_after_single_configurations() -> None:
    names = ["2d", "3d_lowres", "3d_fullres"]
    assert candidates(names, ensembles=True)[:4] == [*((n,) for n in names), ("2d", "3d_lowres")]
    assert candidates(names, ensembles=False) == [(n,) for n in names]
    assert most_questions(3, 4, ensembles=True) == 3 + 3 + 1 + 4
