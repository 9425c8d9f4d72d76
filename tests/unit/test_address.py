"""Addresses that servers listen at."""

from __future__ import annotations

import pytest

from nnunetv2_federated.flower.deployment.address import Address


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("a.org", False),
    ],
)
def test_which_addresses_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert Address(host).loopback is loopback
    assert Address(host, 9092).behind_proxy == Address("127.0.0.1", 9093)
