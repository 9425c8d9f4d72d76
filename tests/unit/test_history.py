"""What ``federation.json`` says about a federation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_federated.federation.errors import CheckpointError, SettingsError, SiteError
from nnunetv2_federated.federation.history import (
    History,
    RoundRecord,
    RoundSeconds,
    SiteSummary,
    UpdateRecord,
    look_up,
    read_history,
    server_side,
)
from nnunetv2_federated.federation.messages import TrainReport, Validation


def report(site, cases, loss, local, received=None):
    return TrainReport(site, cases, loss, local, received, 2.0)


# two classes; the second is nowhere at oslo
BERN = Validation(iterations=4, loss=-2.0, tp=[8, 1], fp=[2, 0], fn=[6, 2])
OSLO = Validation(iterations=1, loss=-0.25, tp=[2, 0], fp=[0, 0], fn=[0, 0])
LYON = Validation(iterations=0, loss=0.0, tp=[0, 0], fp=[0, 0], fn=[0, 0])  # no validation case
REPORTS = [report("bern", 6, 1.0, BERN), report("lyon", 2, 3.0, LYON), report("oslo", 2, 0.5, OSLO)]


UPDATES = {
    "bern": UpdateRecord(1.5, 0.25, 9.0, "accepted"),
    "oslo": UpdateRecord(99.0, None, None, "refused"),
}


def a_round(server_round: int = 0) -> RoundRecord:
    return RoundRecord.of(
        REPORTS,
        server_round=server_round,
        learning_rate=0.01,
        started=1.7e9,
        participants=["bern", "lyon", "oslo"],
        failed={},
        updates=UPDATES,
        bytes_down=300,
        bytes_up=200,
        seconds=RoundSeconds(3.0, 2.0, 0.25, 0.25, 0.5),
    )


def a_history(*rounds: RoundRecord, **changes: Any) -> History:
    sites = {"bern": SiteSummary(6, 2, {"torch": "2.9"})}
    header: dict[str, Any] = {"trainer": "nnUNetTrainer", "plans_name": "nnUNetPlans"}
    return History("Dataset901_A", "2d", {"rounds": 4}, sites, rounds, **(header | changes))


def test_client_side_by_hand():
    record = a_round()
    assert record.train_loss == pytest.approx(1.3)  # (6 * 1 + 2 * 3 + 2 * 0.5) / 10
    assert record.loss == pytest.approx(-0.45)  # (-2 - 0.25) / 5 iterations
    assert record.mean_site_loss == pytest.approx(-0.375)  # (-0.5 - 0.25) / 2
    # from counts of both sites: 2 * 10 / (20 + 2 + 6), 2 * 1 / (2 + 0 + 2)
    assert list(record.dice_per_class) == [pytest.approx(5 / 7), 0.5]
    assert record.dice == pytest.approx((5 / 7 + 1 / 2) / 2)
    bern, lyon, oslo = (record.sites[site] for site in ("bern", "lyon", "oslo"))
    assert list(bern.dice_per_class) == [pytest.approx(2 / 3), 0.5]
    assert bern.loss == -0.5
    assert oslo.dice == 1.0
    assert math.isnan(oslo.dice_per_class[1])
    assert math.isnan(lyon.dice)
    assert math.isnan(lyon.loss)
    assert lyon.train_loss == 3.0
    assert record.mean_site_dice == pytest.approx(((2 / 3 + 1 / 2) / 2 + 1) / 2)


def test_server_side_by_hand():
    record = server_side({"bern": BERN, "oslo": OSLO})
    assert record.loss == pytest.approx(-0.45)
    assert list(record.dice_per_class) == [pytest.approx(5 / 7), 0.5]
    assert list(record.sites) == ["bern", "oslo"]
    assert record.sites["oslo"].loss == -0.25


@pytest.mark.parametrize("validations", [{}, {"lyon": LYON}])
def test_nobody_validated(validations):
    record = server_side(validations)
    assert math.isnan(record.loss)
    assert math.isnan(record.dice)


def test_the_history_is_strict_json(tmp_path):
    path = tmp_path / "federation.json"
    a_history(a_round()).write(path)

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    (first,) = content["rounds"]
    assert list(content["sites"]) == ["bern"]
    assert first["sites"]["lyon"]["dice"] is None
    assert first["sites"]["lyon"]["loss"] is None
    assert first["sites"]["oslo"]["dice_per_class"] == [1.0, None]
    assert first["sites"]["bern"]["loss"] == -0.5
    assert [file.name for file in tmp_path.iterdir()] == ["federation.json"]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    first = a_round().validated({"bern": BERN, "oslo": OSLO})
    a_history(first, a_round(1)).write(tmp_path / "federation.json")

    history = read_history(tmp_path)

    assert (history.dataset, history.num_rounds) == ("Dataset901_A", 4)
    assert (history.trainer, history.plans_name) == ("nnUNetTrainer", "nnUNetPlans")
    assert history.sites["bern"].training_cases == 6
    assert history.rounds[1].round == 1
    assert history.rounds[0].learning_rate == 0.01
    assert history.rounds[0].sites["bern"].loss == -0.5
    assert math.isnan(history.rounds[0].sites["lyon"].loss)
    assert history.rounds[0].global_model is not None
    assert history.rounds[0].global_model.sites["oslo"].loss == -0.25
    assert history.rounds[1].global_model is None
    assert history.rounds[0].updates == UPDATES


def test_the_keys_of_the_file_stay_as_they_are(tmp_path: Path) -> None:
    a_history(a_round().validated({"bern": BERN})).write(tmp_path / "federation.json")
    content = json.loads((tmp_path / "federation.json").read_text())
    assert list(content) == [
        "format", "dataset", "configuration", "settings", "fold", "trainer", "plans",
        "plans_hash", "initial_lr", "parameter_group_shares", "parameters", "versions", "sites",
        "rounds", "personal",
    ]  # fmt: skip
    assert content["format"] == 1
    assert list(content["rounds"][0]) == [
        "round", "lr", "started", "participants", "failed", "updates", "train_loss", "loss",
        "dice_per_class", "dice", "mean_site_loss", "mean_site_dice", "sites", "global_model",
        "bytes_down", "bytes_up", "seconds",
    ]  # fmt: skip
    assert content["rounds"][0]["updates"]["oslo"] == {
        "norm": 99.0, "cosine": None, "bound": None, "outcome": "refused"
    }  # fmt: skip


def test_a_file_without_a_number_of_its_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "federation.json"
    a_history(a_round()).write(path)
    content = json.loads(path.read_text())
    del content["format"], content["rounds"][0]["updates"]  # of an older version
    path.write_text(json.dumps(content))
    assert read_history(tmp_path).rounds[0].updates == {}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "format 2, this installation knows 1: upgrade nnunetv2-federated"),
        ({"format": "1"}, "its format is no number"),
        (
            {"rounds": [{"round": 0, "lr": "0.01"}]},
            r"rounds\.0\.lr: Input should be",
        ),
        ({"settings": {"rounds": "4"}}, "settings: "),
        ({"sites": {"bern": {}}}, r"sites\.bern\.training_cases: Field required"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_place(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "federation.json"
    a_history(a_round()).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SettingsError, match=problem) as error:
        read_history(tmp_path)
    assert "\n" not in str(error.value)


def test_a_round_in_a_saved_state_is_checked() -> None:
    assert RoundRecord.from_plain(a_round().to_plain()).to_plain().keys() == (
        a_round().to_plain().keys()
    )
    with pytest.raises(CheckpointError, match=r"the record of a round cannot be read \(round: "):
        RoundRecord.from_plain({"round": "0"})


def test_a_number_is_looked_up_by_attributes_and_names_of_sites() -> None:
    record = a_round()
    assert look_up(record, "seconds", "training") == 2.0
    assert look_up(record, "sites", "bern", "loss") == -0.5
    assert look_up(record, "sites", "lyon", "loss") is None  # not known
    assert look_up(record, "sites", "rome", "loss") is None  # no such site
    assert look_up(record, "updates", "oslo", "cosine") is None
    assert look_up(record, "global_model", "dice") is None


# On the wire


def test_a_report_survives_the_wire():
    sent = report("bern", 6, 1.0, BERN, OSLO)
    came = TrainReport.from_json(sent.to_json())
    assert came == sent
    assert came.validation == BERN
    assert came.received == OSLO
    assert REPORTS[0].received is None


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"site": "bern", "colour": 1}'])
def test_an_unreadable_report_is_refused(text):
    with pytest.raises(SiteError, match="not a valid TrainReport"):
        TrainReport.from_json(text)
