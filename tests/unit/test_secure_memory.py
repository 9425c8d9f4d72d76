"""What a site remembers of masked sums: written before an answer, by one process at a time."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from masked_sum import NAMES, Sum, refused

from nnunetv2_federated.federation import files
from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.secure.messages import MaskQuestion
from nnunetv2_federated.secure.site_memory import answer, known
from nnunetv2_federated.secure.site_state import MaskedStep, SiteState, Step

FOUR, FIVE = NAMES[:4], NAMES


def remembered(path: Path) -> SiteState | None:
    """Return what a site remembers, by a step that changes nothing."""
    found: list[SiteState | None] = []

    def look(before: SiteState | None) -> Step[None]:
        found.append(before)
        return Step(known(before), None)

    if path.exists():
        answer(path, look)
    return found[0] if found else None


def write(path: Path, state: SiteState) -> None:
    answer(path, lambda _: Step(state, None))


def test_what_a_site_remembers_is_its_own_users_only_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "secagg" / "round.json"
    masked = Sum(FOUR)
    site = masked.sites["bern"]
    first = answer(path, lambda before: site.side.state_keys(site.terms, site.contribution, before))
    assert remembered(path) == first.state
    again = answer(path, lambda before: site.side.state_keys(site.terms, site.contribution, before))
    assert again.answer == first.answer
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    full = masked.up_to("open").sites["bern"].state
    write(path, full)
    assert remembered(path) == full


def test_a_refused_step_changes_nothing_and_the_next_one_has_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "round.json"
    masked = Sum(FOUR).up_to("state")
    side, question = masked.sites["bern"].side, masked.server.share_question()
    assert refused(lambda: answer(path, lambda before: side.share(known(before), question))) == (
        "refused: this site has stated no keys"
    )
    assert not path.exists()
    write(path, masked.sites["bern"].state)
    answer(path, lambda before: side.share(known(before), question))


def test_an_answer_that_could_not_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "round.json"
    site = Sum(FOUR).sites["bern"]

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        with pytest.raises(OSError, match="No space left"):
            answer(path, lambda before: site.side.state_keys(site.terms, site.contribution, before))
    assert remembered(path) is None


def test_of_two_questions_at_a_time_the_second_is_judged_by_the_answer_to_the_first(
    tmp_path: Path,
) -> None:
    """Both sets would be right for a site that has masked nothing; masked for both, it is open."""
    path = tmp_path / "round.json"
    masked = Sum(FIVE, changes={"minimum": 3}).up_to("share")
    site = masked.sites["bern"]
    everybody = masked.server.mask_questions()["bern"]
    fewer = MaskQuestion({name: d for name, d in everybody.boxes.items() if name != "thun"})
    write(path, site.state)
    under_way, go_on = threading.Event(), threading.Event()
    lines: list[str] = []

    def slow(before: SiteState | None) -> MaskedStep:
        under_way.set()
        assert go_on.wait(20)
        return site.side.mask(known(before), everybody, site.contribution)

    def fast(before: SiteState | None) -> MaskedStep:
        return site.side.mask(known(before), fewer, site.contribution)

    def second() -> None:
        lines.append(refused(lambda: answer(path, fast)))

    threads = [threading.Thread(target=answer, args=(path, slow)), threading.Thread(target=second)]
    threads[0].start()
    assert under_way.wait(20)
    threads[1].start()
    threads[1].join(0.2)  # time enough to mask, if nobody held it up
    assert lines == []
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert lines == ["refused: this site has masked its update for others before"]
    state = remembered(path)
    assert state is not None
    assert state.masked_for == list(FIVE)


@pytest.mark.parametrize("damage", ["", "{", '{"format": 1}', '{"format": 1, "state": "{}"}'])
def test_a_damaged_memory_is_never_taken_for_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "round.json"
    path.write_text(damage)
    site = Sum(FOUR).sites["bern"]
    line = refused(
        lambda: answer(
            path, lambda before: site.side.state_keys(site.terms, site.contribution, before)
        ),
        CheckpointError,
    )
    assert str(path) in line
    assert "delete it only if no run of before is ever continued" in line
    assert path.read_text() == damage
