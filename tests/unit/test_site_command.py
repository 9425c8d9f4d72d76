"""What ``nnUNetv2_federated_site`` shows and asks before its site takes part in anything."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from test_imports import PLANNING, TRAINING

from nnunetv2_federated.cli import site, site_process
from nnunetv2_federated.cli.site_choices import SiteCommandChoices
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.site.consent import Agreement, Consent, NotApprovedError

BOTH = pytest.mark.parametrize("agreement", [TRAINING, PLANNING], ids=["training", "planning"])


def first_words(agreement: Agreement) -> str:
    return "training of 2d, fold 0" if agreement is TRAINING else "planning together; the coord"


class Keyboard(io.StringIO):
    """A terminal at which this is typed."""

    def isatty(self) -> bool:
        return True


@BOTH
def test_at_a_terminal_the_words_come_before_the_question(
    agreement: Agreement, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Keyboard("y\nn\n"))
    agrees = site_process.who_agrees(SiteCommandChoices(dataset="901"))

    assert agrees(agreement)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(first_words(agreement))
    assert said[-2:] == [f"approval hash: {agreement.approval()}", "take part? [y/N] "]
    assert not agrees(agreement)
    assert not agrees(agreement)  # Ctrl-D


@BOTH
def test_without_a_terminal_the_words_are_shown_once_and_nothing_is_agreed_to(
    agreement: Agreement, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    agrees = site_process.who_agrees(SiteCommandChoices(dataset="901"))

    assert not agrees(agreement)
    said = [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said[0].startswith(first_words(agreement))
    assert said[-1] == f"approval hash: {agreement.approval()}"
    assert not agrees(agreement)  # the server asks again
    assert capsys.readouterr().out == ""


@BOTH
def test_what_approve_all_agrees_to_is_said_in_words_first(
    agreement: Agreement, capsys: pytest.CaptureFixture[str]
) -> None:
    agrees = site_process.who_agrees(SiteCommandChoices(dataset="901", approve_all=True))

    assert agrees(agreement)
    said = [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said[0].startswith(first_words(agreement))
    approval = agreement.approval()[:12]
    assert said[-1] == f"agrees to {agreement.what} {approval}, as --approve-all says"


def test_to_approve_without_a_hash_needs_somebody_who_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    bundle = tmp_path / "sites" / "bern"
    consent = Consent("bern", bundle / "work")
    flags = ["901", "--site", str(bundle / "site.toml"), "--approve"]
    site.main(flags)
    assert capsys.readouterr().out == "nothing was proposed that is not approved already\n"
    with pytest.raises(NotApprovedError):
        consent.require(TRAINING)

    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit) as end:
        site.main(flags)

    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out.startswith("training of 2d, fold 0")
    assert said.err == (
        "error: nobody answered, there is no terminal: agree with --approve "
        f"{TRAINING.approval()[:12]}\n"
    )
    assert not consent.is_approved(TRAINING)

    monkeypatch.setattr("sys.stdin", Keyboard("y\n"))
    site.main(flags)
    assert capsys.readouterr().out.endswith("take part? [y/N] approved\n")
    assert consent.is_approved(TRAINING)


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
        site.main(["901", "--site", str(bundle / "site.toml"), *flags])
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert text in error
    assert len(error.splitlines()) == 1
    assert not list(bundle.glob("work/*.json"))
