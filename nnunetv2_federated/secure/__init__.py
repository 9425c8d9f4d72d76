"""Secure aggregation: keys, masks and shares, so that a server adds up what it cannot read."""
