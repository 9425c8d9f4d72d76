"""What is wrong with the database of a study is one line, whenever that comes out."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest

from nnunetv2_federated.experiment.tune_storage import in_use, open_storage, opening
from nnunetv2_federated.federation.errors import CheckpointError, FederationError, SettingsError


def url_of(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    open_storage(url_of(tmp_path / "study.db"))
    return tmp_path / "study.db"


def change(database: Path, statement: str) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nonsense", "Could not parse"),
        ("postgresql+psycopg2://me:geheim@127.0.0.1:1/none", "Error: "),
        ("mysql+nodriver://me:geheim@a/b", "mysql.nodriver"),
        ("mysql://me:geheim@a/b", "Error: "),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line(url: str, problem: str) -> None:
    with pytest.raises(SettingsError, match="--storage: the database cannot be opened") as bad:
        open_storage(url)
    assert problem in str(bad.value)
    assert "\n" not in str(bad.value)
    assert "geheim" not in str(bad.value)
    assert "pip install 'psycopg[binary]'" in str(bad.value)


def test_what_is_no_database_or_of_another_optuna_is_refused(database: Path) -> None:
    change(database, "UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    with pytest.raises(SettingsError, match=r"table schema|v99"):
        open_storage(url_of(database))
    database.write_bytes(b"notes" * 100)
    with pytest.raises(SettingsError, match="file is not a database") as bad:
        open_storage(url_of(database), str(database))
    assert str(bad.value).startswith(f"{database}: the database cannot be opened")
    assert "psycopg" not in str(bad.value)  # the user did not choose a database


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    change(database, "CREATE TABLE studies (patient TEXT)")
    with pytest.raises(SettingsError, match="has no column named study_name"), opening("x"):
        optuna.create_study(storage=open_storage(url_of(database)), study_name="a")


def test_a_database_that_fails_later_is_one_line_too(database: Path) -> None:
    study = optuna.create_study(storage=open_storage(url_of(database)), study_name="a")
    change(database, "DROP TABLE trials")
    with pytest.raises(FederationError, match="no such table: trials") as bad, in_use("--storage"):
        study.ask()
    assert not isinstance(bad.value, SettingsError)
    assert "the same command goes on" in str(bad.value)

    change(database, "DELETE FROM studies")  # somebody cleaned up
    with pytest.raises(FederationError, match="the database failed"), in_use("--storage"):
        study.set_user_attr("bracket", 0)


def test_what_is_not_the_databases_is_left_as_it_is() -> None:
    for error in (KeyError("a"), KeyboardInterrupt(), CheckpointError("damaged")):
        with pytest.raises(type(error)) as same, in_use("--storage"):
            raise error
        assert same.value is error
