"""What a server and a site agree to and refuse, without a network."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from consortium import wait_for
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError

from nnunetv2_federated.cli.console import ConsoleObserver
from nnunetv2_federated.cli.server import command as server_command
from nnunetv2_federated.cli.site import main
from nnunetv2_federated.cli.terminal import stopping_as_interrupt
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.federation.messages import (
    FullValidation,
    SiteDescription,
    TrainReport,
    Validation,
)
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.server.processes import Child
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, check_listening
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.inbox import Inbox
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.retry import LostError
from nnunetv2_federated.flower.deployment.site.serve import serve
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file
from nnunetv2_federated.flower.deployment.site.supernode import SuperNode
from nnunetv2_federated.nnunet.summary import pool_sites, summarise_site
from nnunetv2_federated.nnunet.training.steps import Steps

# Code


# Where a server listens


def test_what_listens_beyond_this_machine_must_be_forced() -> None:
    public = Address("192.0.2.7", 9092)
    check_listening(Address("127.0.0.1", 9093), force=False)
    check_listening(public, force=True)
    with pytest.raises(SettingsError, match="could then register keys"):
        check_listening(public, force=False)


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


def test_credentials_without_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no site's key there"):
        ServerSettings(tmp_path, Address("localhost")).site_keys()


# Files


def test_the_bundle_can_be_read_as_it_is_handed_out(tmp_path: Path) -> None:
    provision(tmp_path, Address("fl.example.org", 443), ["bern"])

    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")

    assert (settings.name, settings.server) == ("bern", Address("fl.example.org", 443))
    assert settings.load_authority() == (tmp_path / "ca.crt").read_bytes()
    assert settings.load_key().curve.name == "secp384r1"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("rounds = 3", "rounds is unknown; known are"),
        ("max_rounds = 0", "must be a whole number above 0"),
        ("max_hours = 'ten'", "must be a number above 0"),
        ("max_evaluations = 1.5", "max_evaluations 1.5: must be a whole number above 0"),
        ("max_hours = inf", "must be a number above 0"),
        ("max_message_mb = 'x'", "max_message_mb 'x' must be a number above 0"),
        ("max_message_mb = nan", "must be a number above 0"),
        ("allowed_modules = 'os'", "must be a list of Python modules"),
        ("allowed_modules = ['a/b']", "must be a list of Python modules"),
        ("work = 5", "work is missing, or not a text"),
        ("]", "cannot be read"),
    ],
)
def test_a_wrong_site_file_gets_one_line(tmp_path: Path, line: str, text: str) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    path = tmp_path / "sites" / "bern" / "site.toml"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SettingsError, match=text):
        read_site_file(path)
    path.write_text('name = "bern"\n')
    with pytest.raises(SettingsError, match="server is missing"):
        read_site_file(path)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--approve", ""], "--approve '': give at least 12 digits"),
        (["--approve", "zzz"], "--approve 'zzz': give at least 12 digits"),
        (["--withdraw", "f"], "--withdraw 'f': give at least 12 digits"),
        (["--withdraw", "0" * 12], "--withdraw 000000000000: not what was proposed last"),
        (["--rewind", "0123456789", "1"], "--rewind 0123456789: give at least 8 characters"),
        (["--rewind", "0123456789", "first"], "--rewind 0123456789 first: give the round"),
        (["--rewind", "0123456789", "0"], "give the round as the server counts it, from 1"),
        (["--rewind", "*", "1"], "of one run; known are none"),
    ],
)
def test_a_wrong_decision_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    bundle = tmp_path / "sites" / "bern"
    with pytest.raises(SystemExit) as end:
        main(["901", "--site", str(bundle / "site.toml"), *flags])
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert text in error
    assert len(error.splitlines()) == 1
    assert not list(bundle.glob("work/*.json"))


def test_a_site_says_that_nobody_answers_and_goes_on_trying(tmp_path: Path) -> None:
    provision(tmp_path, Address("127.0.0.1", 9), ["bern"])  # nobody listens at "discard"
    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")
    said: list[str] = []
    stopped = threading.Event()
    guarded = GuardedSite(LocalSite("bern", "901", tmp_path, "cpu"))

    threading.Timer(3, stopped.set).start()
    serve(settings, guarded, said.append, stopped)

    assert len(said) == 1  # not once for each attempt
    assert said[0].startswith("no connection to 127.0.0.1:9: ")


@pytest.mark.parametrize("error", [ObjectPushError("a", 1, "b"), ObjectPullError("a", "gone")])
def test_a_superlink_killed_between_parts_of_a_message_is_a_lost_connection(
    tmp_path: Path, error: Exception
) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")
    supernode = SuperNode(
        settings.server,
        settings.load_key(),
        settings.load_authority(),
        Inbox(tmp_path / "inbox"),
        max_bytes=1,
    )

    with pytest.raises(LostError, match="lost a part of the message"), supernode._losing():
        raise error


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x0a\x00", b"x" * 1000])
def test_a_damaged_inbox_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")
    inbox = tmp_path / "work" / "inbox"
    inbox.mkdir(parents=True)
    (inbox / "message.pb").write_bytes(content)
    (tmp_path / "work" / "node").write_text("9" * 100)
    supernode = SuperNode(
        settings.server, settings.load_key(), settings.load_authority(), Inbox(inbox), max_bytes=1
    )

    assert Inbox(inbox).kept() is None
    assert supernode._still_active(in_doubt=False) is None
    assert not inbox.exists()


def test_a_worker_forked_by_a_command_ends_when_its_pool_says_so() -> None:
    with stopping_as_interrupt():
        assert callable(signal.getsignal(signal.SIGTERM))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(signal.getsignal, (signal.SIGTERM,)) == signal.SIG_DFL


def test_a_site_runs_once(tmp_path: Path) -> None:
    with (
        only_one(tmp_path / "lock", "this site runs already"),
        pytest.raises(SettingsError, match="runs already"),
        only_one(tmp_path / "lock", "this site runs already"),
    ):
        pass
    with only_one(tmp_path / "lock", "this site runs already"):
        pass


def test_a_child_that_is_killed_is_started_again_until_it_is_stopped(tmp_path: Path) -> None:
    log, pid = tmp_path / "log", tmp_path / "pid"
    child = Child(["sh", "-c", f"echo $$ > {pid}; echo begun; exec sleep 30"], log, os.environ)
    child.start()
    for times in (1, 2):
        wait_for(
            lambda times=times: log.is_file() and log.read_text().count("begun") == times,
            f"start {times}",
        )
        os.kill(int(pid.read_text()), signal.SIGKILL)
        assert not child.failed()
    child.stop()  # it is about to be started again

    assert log.read_text().count("begun") == 2


def test_a_child_that_ends_by_itself_has_failed_unless_it_is_to_keep_running(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    child = Child(["sh", "-c", "echo begun"], log, os.environ)
    child.start()
    wait_for(child.failed, "end")
    assert child.last_line() == "begun"

    child.keep_running()  # it has ended before this was said
    wait_for(lambda: log.read_text().count("begun") == 2, "second start")
    child.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"site": 5},
        {"training_cases": "5"},
        {"declared": 5},
        {"versions": ["torch"]},
        {"versions": {"torch": 2}},
        {"device": None},
        {"free_gb": "much"},
        {"free_tb": 1},
    ],
)
def test_a_site_that_describes_itself_in_other_types_is_refused(changes: dict[str, Any]) -> None:
    good = asdict(SiteDescription("bern", 5, 2, "m", "p"))
    assert SiteDescription.from_json(json.dumps(good)).site == "bern"
    with pytest.raises(SiteError, match="not a valid SiteDescription"):
        SiteDescription.from_json(json.dumps(good | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"cases": "2"},
        {"foreground_mean": {"Dice": "good"}},
        {"mean": {"1": 0.9}},
        {"mean": {"1": {"Dice": 0.9}}},
        {"mean": {"1": {"Dice": [0.9, 2, 3]}}},
        {"mean": {"1": {"Dice": [None, 2]}}},
    ],
)
def test_a_validation_in_other_types_is_refused(changes: dict[str, Any]) -> None:
    good = asdict(FullValidation("bern", 2, {"Dice": 0.9}, {"1": {"Dice": [0.9, 2]}}))
    assert FullValidation.from_json(json.dumps(good)).cases == 2
    with pytest.raises(SiteError, match="not a valid FullValidation"):
        FullValidation.from_json(json.dumps(good | changes))


def test_the_server_shows_its_sites_and_where_they_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sites = [
        SiteDescription("bern", 5, 2, "m", "p", {}, {"torch": "2.9", "flwr": "1.41"}, "cpu", 81.2),
        SiteDescription("oslo", 7, 0, "m", "p", {}, {"torch": "2.8", "flwr": "1.41"}, "H100", 9.8),
    ]

    ConsoleObserver(3).sites_joined(sites)

    rows = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows if len(row) > 2]
    assert cells == [
        ["bern", "5", "2", "cpu", "81 GB", "1.41", "2.9"],
        ["oslo", "7", "0", "H100", "10 GB", "1.41", "2.8"],
    ]
    assert rows[-1] == ["sites differ in torch: bern 2.9, oslo 2.8"]


def test_the_example_of_a_server_holds_known_and_allowed_settings() -> None:
    path = Path(__file__).parents[2] / "examples" / "deployment" / "federation.toml"

    # its server is named here: nothing was provisioned beside the example
    choices = server_command().parse(["--settings", str(path), "--server", "localhost"])

    assert choices.part(FederationSettings).min_replies == 2
    assert choices.credentials == path.parent / "credentials" / "server"


# Rounds with a deadline


def test_iterations_after_the_deadline_are_left_out() -> None:
    steps = Steps(seconds=-1.0)
    assert not steps.over()  # one iteration is always done

    steps.take({"loss": 4.0})
    assert steps.over()
    skipped = [steps.skip()["loss"] for _ in range(3)]

    assert skipped == [4.0, 4.0, 4.0]
    assert steps.completed == 0.25
    assert not Steps().over()


@pytest.mark.parametrize("completed", [0, -0.5, 1.5, "1"])
def test_a_site_cannot_claim_more_than_it_did(completed: object) -> None:
    nothing = Validation(0, 0.0, [], [], [])
    with pytest.raises(ValueError, match="completed"):
        TrainReport("bern", 1, 0.0, nothing, None, 0.0, completed=completed)  # type: ignore[arg-type]


# Validation at the sites


def test_pooled_means_are_those_of_all_cases_together(tmp_path: Path) -> None:
    def write(name: str, dices: list[float]) -> Path:
        rows = [{"metrics": {"1": {"Dice": dice}}} for dice in dices]
        seen = [dice for dice in dices if dice == dice]  # noqa: PLR0124  # not NaN
        mean = sum(seen) / len(seen) if seen else float("nan")
        folder = tmp_path / name / "validation"
        folder.mkdir(parents=True)
        content = {"foreground_mean": {"Dice": mean}, "mean": {"1": {"Dice": mean}}}
        (folder / "summary.json").write_text(json.dumps({**content, "metric_per_case": rows}))
        return tmp_path / name

    nan = float("nan")
    told = [
        summarise_site("bern", 3, write("bern", [0.9, 0.6, nan])),
        summarise_site("oslo", 1, write("oslo", [0.3])),
        summarise_site("lyon", 1, write("lyon", [nan])),
    ]

    assert told[0].mean == {"1": {"Dice": [0.75, 2]}}
    assert told[2].mean == {"1": {"Dice": [0.0, 0]}}
    assert pool_sites(told)["foreground_mean"]["Dice"] == pytest.approx(0.6)  # 1.8 / 3
    assert all("case" not in json.dumps(asdict(site)["mean"]) for site in told)


def test_a_classifier_is_pooled_by_its_cases() -> None:
    told = [
        FullValidation("bern", 30, {"AUROC": 0.9}, {}),
        FullValidation("oslo", 10, {"AUROC": 0.5}, {}),
        FullValidation("lyon", 0, {}, {}),
    ]
    assert pool_sites(told)["foreground_mean"] == {"AUROC": pytest.approx(0.8)}


# Commands


def test_every_command_describes_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = entry_points(group="console_scripts")
    ours = [s for s in scripts if s.value.startswith(("nnunetv2_federated.", "nnunetv2_cls."))]
    for command in ours:
        if command.name == "nnUNetv2_federated_trainer_folder":
            continue  # prints a folder
        monkeypatch.setattr("sys.argv", [command.name, "--help"])
        with pytest.raises(SystemExit) as end:
            command.load()()
        assert end.value.code == 0
        assert f"usage: {command.name}" in capsys.readouterr().out
    assert len(ours) >= 13
