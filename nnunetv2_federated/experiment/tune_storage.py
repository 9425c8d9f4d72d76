"""The database that keeps a study: how it is opened, and in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import optuna
import sqlalchemy

from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.text import clean

STORAGE = "--storage"
"""What a database of the user's own is called in messages."""
_CODE = ("optuna.storages._rdb", "optuna.storages._cached_storage", "sqlalchemy")
"""Modules in which an error is the database's; Optuna lets some of its drivers' through."""
_PATIENCE = {"connect_timeout": "30", "tcp_user_timeout": "60000"}
"""What libpq waits at most: seconds for a connection, milliseconds for a server that is silent."""


def open_storage(url: str, name: str = STORAGE) -> optuna.storages.BaseStorage:
    """Connect to Optuna's database, and make its tables if it has none.

    A connection that was lost since it was last used is made anew: between two trials there may be
    hours.

    Parameters
    ----------
    url
        SQLAlchemy's URL of the database.
    name
        What the database is called in messages.

    Raises
    ------
    SettingsError
        If it cannot be opened, or has the tables of another Optuna.
    """
    with opening(name):
        options: dict[str, Any] = {"pool_pre_ping": True, "connect_args": _patience(url)}
        storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
        return optuna.storages.get_storage(storage)


@contextlib.contextmanager
def opening(name: str) -> Iterator[None]:
    """Raise ``SettingsError`` if a database cannot be opened or used within.

    Parameters
    ----------
    name
        What the database is called in the message.
    """
    try:
        yield
    except FederationError:
        raise
    except Exception as error:  # SQLAlchemy's and every driver's own
        raise SettingsError(
            f"{name}: the database cannot be opened ({_why(error)}){_remedy(name)}"
        ) from error


@contextlib.contextmanager
def in_use(name: str) -> Iterator[None]:
    """Raise ``FederationError`` if a database fails within that could be opened.

    Parameters
    ----------
    name
        What the database is called in the message.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FederationError) or not _is_of_a_database(error):
            raise
        raise FederationError(
            f"{name}: the database failed ({_why(error)}); once it can be used again, the same "
            "command goes on, and no trial is lost."
        ) from error


def _patience(url: str) -> dict[str, str]:
    """Return for PostgreSQL's own library what ends its waiting, unless the URL says so."""
    parsed = sqlalchemy.engine.make_url(url)
    if parsed.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    return {key: value for key, value in _PATIENCE.items() if key not in parsed.query}


def _is_of_a_database(error: BaseException) -> bool:
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__")).startswith(_CODE) for frame in frames)


def _why(error: BaseException) -> str:
    """Return what the driver says: Optuna and SQLAlchemy wrap it in words of their own."""
    wrapped = (optuna.exceptions.StorageInternalError, ImportError)
    while isinstance(error, wrapped) and error.__cause__ is not None:
        error = error.__cause__
    said = getattr(error, "orig", None) or error
    return clean(f"{type(said).__name__}: {said}", 300)


def _remedy(name: str) -> str:
    if name != STORAGE:
        return "; it may be damaged, or of another Optuna."
    return (
        "; give one as sqlite:///study.db or postgresql+psycopg://user@host/name, and install its "
        "driver, for this one pip install 'psycopg[binary]'."
    )
