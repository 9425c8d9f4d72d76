"""The one exception of this package."""

from __future__ import annotations


class ClsError(ValueError):
    """Bad input: the message says what came, what is allowed and how to fix it."""
