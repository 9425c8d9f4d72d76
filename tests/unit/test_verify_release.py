"""A release from somebody else: what is changed, missing, added, hostile or of another key."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nnunetv2_federated.cli.release import main
from nnunetv2_federated.experiment.release import _write_checksums
from nnunetv2_federated.experiment.verify_release import verify_release
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.history import SiteSummary
from nnunetv2_federated.federation.messages import PrivacyTerms
from nnunetv2_federated.federation.model_card import (
    CARD_FILE,
    FoldRecord,
    ModelCard,
    read_card,
    write_card,
)
from nnunetv2_federated.federation.release_files import write_zip
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.report.model_card import card_as_markdown

NAME = "Dataset973_Made"
WEIGHTS = "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth"


def a_card(purpose: str | None = None) -> ModelCard:
    return ModelCard(
        dataset=NAME,
        trainer="nnUNetTrainer",
        plans_name="nnUNetPlans",
        plans_hash="0" * 64,
        checkpoints=("checkpoint_final.pth",),
        runs_with="nnU-Net",
        declared={"labels": {"background": 0, "heart": 1}},
        folds=(FoldRecord(configuration="2d", fold=0),),
        purpose=purpose,
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders ``server`` of two coordinators."""
    found = {}
    for name in ("ours", "theirs"):
        folder = tmp_path_factory.mktemp(name)
        provision(folder, Address("localhost"), ["bern"])
        found[name] = folder / "server"
    return found


@pytest.fixture
def made(tmp_path: Path, keys: dict[str, Path]) -> Path:
    """A folder with a signed release."""
    top = tmp_path / "release" / NAME
    (top / WEIGHTS).parent.mkdir(parents=True)
    (top / WEIGHTS).write_bytes(b"weights" * 1000)
    (top / CARD_FILE).write_text(write_card(a_card()))
    _write_checksums(top, keys["ours"])
    return top.parent


def test_a_whole_release_is_told_by_its_signer(
    made: Path, keys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_zip(made / NAME, tmp_path / "release.zip")
    write_zip(made / NAME, tmp_path / "again.zip")
    key = keys["ours"] / "coordinator.pub"
    for release in (made, tmp_path / "release.zip"):
        main(["--verify", str(release), "--key", str(key)])
        said = capsys.readouterr().out
        assert f"{release} is whole: {NAME}, 2d, 2 files as in SHA256SUMS; signed with" in said
        main(["--verify", str(release)])
        assert "signed, but give --key to know by whom" in capsys.readouterr().out
    assert (tmp_path / "release.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    # without this package
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=made / NAME, check=True)


def change(made: Path) -> None:
    (made / NAME / WEIGHTS).write_bytes(b"weightz" * 1000)


def remove(made: Path) -> None:
    (made / NAME / WEIGHTS).unlink()


def add(made: Path) -> None:
    (made / NAME / "more.pth").touch()


def without_sums(made: Path) -> None:
    (made / NAME / "SHA256SUMS").unlink()


def link(made: Path) -> None:
    (made / NAME / WEIGHTS).unlink()
    (made / NAME / WEIGHTS).symlink_to("/etc/hostname")


def of_another_format(made: Path) -> None:
    path = made / NAME / CARD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    _write_checksums_again(made)


def with_a_word_for_a_number(made: Path) -> None:
    path = made / NAME / CARD_FILE
    path.write_text(path.read_text().replace('"rounds": null', '"rounds": "many"'))
    _write_checksums_again(made)


def _write_checksums_again(made: Path) -> None:
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        (made / NAME / name).unlink()
    _write_checksums(made / NAME, None)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change, f"{WEIGHTS} was changed"),
        (remove, f"{WEIGHTS} is missing"),
        (add, "more.pth was added"),
        (without_sums, "SHA256SUMS is missing"),
        (link, "checkpoint_final.pth is no plain file"),
        (of_another_format, "model_card.json has format 2, this installation knows 1: upgrade"),
        (with_a_word_for_a_number, "model_card.json cannot be read (folds.0.rounds: "),
    ],
)
def test_what_is_wrong_is_one_line(
    made: Path,
    spoil: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(made)
    with pytest.raises(SystemExit) as end:
        main(["--verify", str(made)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {made}: {words}")
    assert said.endswith("do not install it.\n")
    assert said.count("\n") == 1


def test_a_signature_must_be_there_and_of_this_key(made: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"its signature is not of the key SHA256:"):
        verify_release(made, keys["theirs"] / "coordinator.pub")
    # files and sums that fit, by somebody without the key
    change(made)
    signature = (made / NAME / "SHA256SUMS.sig").read_bytes()
    _write_checksums_again(made)
    with pytest.raises(SettingsError, match="is not signed, although --key was given"):
        verify_release(made, keys["ours"] / "coordinator.pub")
    (made / NAME / "SHA256SUMS.sig").write_bytes(signature)
    assert verify_release(made).signed
    with pytest.raises(SettingsError, match="or it was changed since"):
        verify_release(made, keys["ours"] / "coordinator.pub")
    with pytest.raises(SettingsError, match=r"nowhere\.pub cannot be read"):
        verify_release(made, Path("nowhere.pub"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([f"{NAME}/../../etc/cron.d/x"], "has a name that leads elsewhere"),
        (["/etc/cron.d/x"], "has a name that leads elsewhere"),
        ([f"{NAME}/a\x1b[2Jb"], "has a name that leads elsewhere"),
        ([f"{NAME}/a\\..\\b"], "has a name that leads elsewhere"),
        ([f"{NAME}/a", f"{NAME}/A"], "two of its files have the same name"),
        ([f"{NAME}/a", "Dataset974_Other/plans.json"], "are not in one folder"),
        (["model/a"], "nnU-Net needs a name such as Dataset501_Name"),
        ([], "are not in one folder"),
    ],
)
def test_a_hostile_zip_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    path = tmp_path / "release.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of double names
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(SettingsError, match=words) as refused:
        verify_release(path)
    assert str(refused.value).isprintable()


def test_links_bombs_and_torn_zips_are_refused(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "release.zip"
    info = zipfile.ZipInfo(f"{NAME}/plans.json")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SettingsError, match=r"plans\.json is no plain file"):
        verify_release(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAME}/SHA256SUMS", bytes(2**20))
    with pytest.raises(SettingsError, match="more than 20 times as large"):
        verify_release(path)
    write_zip(made / NAME, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"weights")] ^= 1
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="is damaged"):
        verify_release(path)
    path.write_bytes(content[:-100])
    with pytest.raises(SettingsError, match="is damaged, or no zip"):
        verify_release(path)
    shutil.rmtree(made)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        verify_release(made)


def test_flags_of_the_other_use_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--verify", "a.zip", "-o", "b.zip"], "-o: is not used by --verify"),
        (["901", "--key", "a.pub"], "--key a.pub: needs --verify"),
        (["901", "-o", "a.zip"], "-c is missing"),
        (["901", "--purpose", "two\nlines"], "--purpose two lines: must be one line of at most"),
    ):
        with pytest.raises(SystemExit) as end:
            main(flags)
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {words}")


def test_the_text_of_a_card_is_no_markup() -> None:
    page = card_as_markdown(a_card("for [hearts](http://evil) <script>"))
    assert r"for \[hearts\](http\://evil) \<script\>" in page
    assert "nnU-Net alone runs it" in page
    assert "without differential privacy" in page


def test_a_card_says_what_each_site_promised_in_each_fold() -> None:
    terms = PrivacyTerms(
        unit="patient",
        patients=120,
        probability=0.25,
        noise_multiplier=1.5,
        clip=1.0,
        iterations=4000,
        delta=1e-5,
        epsilon=7.25,
        epsilon_replace_one=15.5,
        epsilon_spent=9.75,
        max_epsilon=10.0,
        accountant="dp-accounting 0.6.0",
        told_of_validation="withhold",
    )
    sites = {
        "bern": SiteSummary(training_cases=130, validation_cases=30, privacy=terms),
        "lyon": SiteSummary(training_cases=9),
    }
    folds = tuple(FoldRecord(configuration="2d", fold=n, rounds=3, sites=sites) for n in (0, 1))
    card = replace(a_card(), folds=folds)
    assert read_card(write_card(card).encode()) == card
    page = card_as_markdown(card)
    row = next(line for line in page.splitlines() if line.startswith("| 2d, fold 1 | bern"))
    for shown in ("120 patients", "7.25", "15.50", "1e-05", "9.75 of 10", "4000", "nothing"):
        assert shown in row
    assert "Each fold is a training of its own" in page
    assert "sites that are not listed: Trained without differential privacy" in page
