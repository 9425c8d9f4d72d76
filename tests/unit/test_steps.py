"""Iterations of a round with a deadline."""

from __future__ import annotations

from nnunetv2_federated.nnunet.training.steps import Steps


def test_iterations_after_the_deadline_are_left_out() -> None:
    steps = Steps(seconds=-1.0)
    assert not steps.over()  # one iteration is always done

    steps.take({"loss": 4.0})
    assert steps.over()
    skipped = [steps.skip()["loss"] for _ in range(3)]

    assert skipped == [4.0, 4.0, 4.0]
    assert steps.completed == 0.25
    assert not Steps().over()


def test_another_may_decide_that_time_is_over() -> None:
    """Processes that train together skip the same iterations, whatever their clocks say."""
    asked: list[bool] = []

    def not_before_the_third_time(found: bool) -> bool:
        asked.append(found)
        return len(asked) == 3

    steps = Steps(-1.0, not_before_the_third_time)
    steps.take({"loss": 1.0})
    assert [steps.over() for _ in range(5)] == [False, False, True, True, True]
    assert asked == [True, True, True]  # once it is over, nobody is asked again
