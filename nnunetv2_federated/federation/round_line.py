"""One line about a round, for a terminal and for a log."""

from __future__ import annotations

import math

from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.update_bound import ACCEPTED, LARGEST_NORM


def describe_round(record: RoundRecord, num_rounds: int) -> str:
    """Return one line about a round."""
    failed = f"  failed: {', '.join(record.failed)}" if record.failed else ""
    for site, update in record.updates.items():
        if update.outcome != ACCEPTED:
            failed += f"  {update.outcome}: {site}, update norm {update.norm:.3g}"
            failed += f" over {update.bound or LARGEST_NORM:.3g}"
    known = (
        ("train loss", record.train_loss, "+.4f"),
        ("validation loss", record.loss, "+.4f"),
        ("Dice", record.dice, ".4f"),
    )
    told = "".join(f"  {name} {n:{form}}" for name, n, form in known if math.isfinite(n))
    return (
        f"round {record.round + 1:>{len(str(num_rounds))}}/{num_rounds}"
        f"  lr {record.learning_rate:.5f}{told}  {record.seconds.round:.1f} s{failed}"
    )
