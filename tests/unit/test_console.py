"""What a round's line at the terminal says."""

from __future__ import annotations

from nnunetv2_federated.cli.console import describe_round
from nnunetv2_federated.federation.history import RoundRecord

ACCEPTED = {"norm": 1.5, "cosine": 0.5, "bound": 10.0, "outcome": "accepted"}
ROUND = {
    "round": 0, "lr": 0.01, "train_loss": -0.5, "loss": -0.25, "dice": 0.75,
    "seconds": {"round": 12.0}, "failed": {}, "updates": {"bern": ACCEPTED},
}  # fmt: skip
LINE = "round  1/10  lr 0.01000  train loss -0.5000  validation loss -0.2500  Dice 0.7500  12.0 s"


def test_a_round_in_which_nothing_happened() -> None:
    assert describe_round(RoundRecord.from_plain(ROUND), 10) == LINE


def test_updates_that_were_not_taken_as_they_came_are_named() -> None:
    updates = {
        "bern": ACCEPTED,
        "lyon": {**ACCEPTED, "norm": 123.4, "outcome": "refused"},
        "oslo": {**ACCEPTED, "norm": 11.0, "outcome": "clipped"},
        "zug": {**ACCEPTED, "norm": 1e30, "bound": None, "outcome": "refused"},
    }
    record = {**ROUND, "updates": updates, "failed": {"lyon": "why", "zug": "why"}}
    assert describe_round(RoundRecord.from_plain(record), 10) == (
        f"{LINE}  failed: lyon, zug  refused: lyon, update norm 123 over 10"
        "  clipped: oslo, update norm 11 over 10  refused: zug, update norm 1e+30 over 1e+12"
    )
