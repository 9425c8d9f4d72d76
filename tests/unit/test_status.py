"""What ``nnUNetv2_federated_status`` shows."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from nnunetv2_federated.cli.status import site_rows
from nnunetv2_federated.federation.history import History


def read(content: dict[str, Any]) -> History:
    return TypeAdapter(History).validate_python(content)


def test_status_says_who_answered_last() -> None:
    def record(number: int, sites: list[str], failed: dict[str, str]) -> dict[str, Any]:
        return {
            "round": number,
            "started": 1000.0 * number,
            "seconds": {"round": 100.0},
            "sites": {site: {} for site in sites},
            "failed": failed,
        }

    history = {
        "dataset": "Dataset901_A",
        "configuration": "2d",
        "settings": {"rounds": 2},
        "sites": {"bern": {"training_cases": 5}, "oslo": {"training_cases": 7}},
        "rounds": [
            record(0, ["bern", "oslo"], {}),
            record(1, ["bern"], {"oslo": "no reply"}),
        ],
    }

    assert site_rows(read(history), now=1100.0 + 180) == [
        ("bern", "5", "2", "round 2, 3 min ago", ""),
        ("oslo", "7", "1", "round 1, 20 min ago", "round 2: no reply"),
    ]
