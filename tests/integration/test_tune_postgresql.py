"""A study in PostgreSQL is the one in SQLite, whoever is killed, and its password is nowhere."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from postgresql import PostgreSQL
from tuning_on_paper import Paper, a_plan, content, killed_after, open_study, run

from nnunetv2_federated.cli.tune import main
from nnunetv2_federated.experiment.tune_pieces import Piece
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_storage import in_use, open_storage
from nnunetv2_federated.experiment.tune_study import Study, Trial
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.halving import Halving

pytestmark = [pytest.mark.slow(20), pytest.mark.xdist_group("postgresql")]
PLAN = a_plan(12, Halving("halving", 3, 3, size=6))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    server = PostgreSQL()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def in_sqlite(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    study = open_study(tmp_path_factory.mktemp("sqlite"), PLAN)
    assert run(study, PLAN) is None
    return content(study)


class Trained(Paper):
    """Its weights outlive the process."""

    def __init__(self, plan: TuningPlan) -> None:
        super().__init__(plan)
        self.weights = set(range(plan.trials))


def in_postgresql(server: PostgreSQL, name: str) -> Study:
    return Study(open_storage(server.url()), name, PLAN)


def killed_in_a_process_of_its_own(server: PostgreSQL, write: int) -> bool:
    """Go on with a study, in a process that kills itself at a write; return whether it did."""
    child = os.fork()
    if not child:
        try:
            study = in_postgresql(server, "killed")
            killed_after(write, study, lambda: os.kill(os.getpid(), signal.SIGKILL))
            run(study, PLAN, Trained(PLAN))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_study_killed_in_postgresql_ends_as_the_one_in_sqlite(
    server: PostgreSQL, in_sqlite: list[Trial]
) -> None:
    for write in (0, 1, 4, 7, 10):
        assert killed_in_a_process_of_its_own(server, write)
    study = in_postgresql(server, "killed")
    assert 0 < len(content(study)) < 12
    assert run(study, PLAN, Trained(PLAN)) is None
    assert content(in_postgresql(server, "killed")) == in_sqlite


class Interrupted(Trained):
    """Something happens to the server before a score is kept."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__(PLAN)
        self._happens = happens

    def train(
        self,
        pieces: Sequence[Piece],
        scored: Callable[[Piece, float], None],
        diverged: Callable[[Piece, str], None],
    ) -> None:
        self._happens()
        super().train(pieces, scored, diverged)


def test_a_server_that_goes_away_is_one_line_and_one_that_restarts_is_none(
    server: PostgreSQL, in_sqlite: list[Trial]
) -> None:
    study = in_postgresql(server, "left")
    failed = pytest.raises(FederationError, match="--storage: the database failed")
    with failed as bad, in_use("--storage"):
        run(study, PLAN, Interrupted(server.stop))
    assert not isinstance(bad.value, SettingsError)
    assert "the same command goes on" in str(bad.value)
    with pytest.raises(SettingsError, match="the database cannot be opened"):
        open_storage(server.url())

    def restart() -> None:
        server.stop()
        server.start()

    server.start()
    assert run(in_postgresql(server, "left"), PLAN, Interrupted(restart)) is None
    assert content(in_postgresql(server, "left")) == in_sqlite


@pytest.mark.usefixtures("forked_trainings", "results")
def test_the_command_keeps_its_study_there(
    server: PostgreSQL, dataset_2d: str, tmp_path: Path
) -> None:
    settings, study = tmp_path / "tune.toml", tmp_path / "study"
    settings.write_text(
        "rounds = 1\niterations_per_epoch = 1\nval_iterations = 1\nsites = 2\n"
        'device = "cpu"\nbrackets = "none"\nrungs = 1\ntrials = 1\nscore_iterations = 2\n'
        "[search]\nmomentum = [0.5, 0.9]\n"
    )
    argv = [dataset_2d, "2d", "0", "--settings", str(settings), "--study", str(study)]
    main([*argv, "--storage", server.url()])
    name = json.loads((study / "study.json").read_text())["name"]
    (trial,) = content(in_postgresql(server, name))
    assert (trial.state, sorted(trial.scores)) == ("complete", [1])
    assert not (study / "study.db").exists()
    for path in study.rglob("*"):
        assert path.is_dir() or server.password.encode() not in path.read_bytes()


def test_a_wrong_password_is_told_without_it(server: PostgreSQL) -> None:
    with pytest.raises(SettingsError, match="password authentication failed") as bad:
        open_storage(server.url("geheim"))
    assert "geheim" not in str(bad.value)
