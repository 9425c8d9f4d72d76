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
