"""Errors of sites on this machine: their cases may be named to whoever started the command."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from nnunetv2_federated.federation.errors import SettingsError, SiteError

_MOST_NOTES = 5


class _Noting(Protocol):
    @property
    def notes(self) -> Sequence[str]: ...


@contextlib.contextmanager
def naming_cases(sites: Sequence[_Noting]) -> Iterator[None]:
    """Add names of cases and files, all of them this user's own, to an error, as bad input.

    Parameters
    ----------
    sites
        Sites of this machine; their ``notes`` are what a hospital would keep in its log.

    Raises
    ------
    SettingsError
        In place of a ``SiteError`` within, with the sites' notes.
    """
    log = logging.getLogger("nnunetv2_federated")
    unheard = logging.NullHandler()  # the error has what a site would log
    log.addHandler(unheard)
    try:
        yield
    except SiteError as error:
        notes = [note.rstrip(".") for site in sites for note in site.notes]
        more = f" ({len(notes) - _MOST_NOTES} more)" if len(notes) > _MOST_NOTES else ""
        said = str(error)
        if notes:
            said = f"{said.rstrip('.')}. Here: {'; '.join(notes[:_MOST_NOTES])}{more}."
        raise SettingsError(said) from error
    finally:
        log.removeHandler(unheard)
