"""The exceptions of this package, one small tree.

``FederationError``
    ``SettingsError``    what the user asked for cannot be done (exit status 2, before training)
    ``CheckpointError``  a saved state is missing, damaged or of another run (exit status 2)
    ``SiteError``        a site failed or sent something unusable; names the site
    ``RoundError``       a round ended with too few valid replies
        ``SpoiledError``  no further reply can complete the round, only the next one goes on
"""

from __future__ import annotations

DIVERGED = "the training diverged"
"""What is said of a site whose training loss is not finite."""


class FederationError(Exception):
    """Base class of everything this package raises on purpose."""


class SettingsError(FederationError):
    """Bad input: the message says what came, what is allowed and how to fix it."""


class CheckpointError(FederationError):
    """A saved state cannot be used."""


class SiteError(FederationError):
    """A site failed, or its reply cannot be used."""


class RoundError(FederationError):
    """A round ended with fewer valid replies than required."""


class SpoiledError(RoundError):
    """Nothing can complete this round any more; the next may begin with the same model."""
