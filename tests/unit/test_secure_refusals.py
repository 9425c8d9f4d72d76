"""What sites refuse a coordinator that lies, and a server a site that does: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
from masked_sum import NAMES, B, Site, Sum, key_of, part, refused, roster_of, terms_of

from nnunetv2_federated.federation.errors import (
    SettingsError,
)
from nnunetv2_federated.secure.contribution import Contribution, Tensor
from nnunetv2_federated.secure.keys import (
    SECRET_BYTES,
    MaskKeys,
    agree,
    commitment,
    public_hex,
)
from nnunetv2_federated.secure.masking import add_stream
from nnunetv2_federated.secure.messages import (
    ConfirmQuestion,
    MaskQuestion,
    OpenQuestion,
    ShareQuestion,
    Statement,
    to_bytes,
    to_text,
)
from nnunetv2_federated.secure.roster import STATEMENT, Member, Roster
from nnunetv2_federated.secure.server_side import ServerSide
from nnunetv2_federated.secure.server_state import ServerState
from nnunetv2_federated.secure.shares import combine, unpack
from nnunetv2_federated.secure.site_side import SiteSide

FOUR, FIVE = NAMES[:4], NAMES


def signed(statement: Statement, **changes: object) -> Statement:
    """Return a statement that its site has signed itself, with other content."""
    other = replace(statement, **changes)  # type: ignore[arg-type]
    member = Member(other.site, key_of(other.site), roster_of(FOUR))
    return replace(other, signature=member.sign(STATEMENT, other.content()))


# What a site is told of the others


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "run2"),
        ("approval", B),
        ("server_round", 1),
        ("model", B),
        ("task", B),
        ("total_cases", 10**6),
        ("largest_change", 16.0),
        ("minimum", 4),
        ("parameters", 51),
        ("counts", 1),
        ("values", 2),
    ],
)
def test_a_site_that_was_told_something_else_is_named_with_the_field(
    field: str, value: object
) -> None:
    masked = Sum(FOUR).up_to("state")
    statements = masked.server.state.by_name
    told = replace(masked.terms, **{field: value})  # type: ignore[arg-type]
    statements = {**statements, "bern": signed(statements["bern"], terms=told)}
    wanted = f"refused: bern was told another {field}: {value}, here {getattr(masked.terms, field)}"
    question = ShareQuestion(list(statements.values()))
    assert refused(lambda: masked.sites["chur"].share(question)) == wanted
    other = Sum(FOUR).server
    assert refused(lambda: other.take_statement("bern", statements["bern"])) == wanted


def test_every_field_of_the_terms_is_compared() -> None:
    compared = {"run", "approval", "server_round", "model", "task", "roster", "total_cases"}
    compared |= {"largest_change", "minimum", "parameters", "counts", "values", "format"}
    assert set(asdict(terms_of(FOUR))) == compared


def test_keys_that_the_server_has_made_itself_are_refused() -> None:
    masked = Sum(FOUR).up_to("state")
    honest = masked.server.state.by_name
    forged = replace(honest["bern"], pair_key=public_hex(bytes(16)))  # signature as it was
    stranger = Member("thun", key_of("thun"), roster_of(FIVE))
    not_asked = replace(honest["bern"], site="thun", signature="A" * 80)
    not_asked = replace(not_asked, signature=stranger.sign(STATEMENT, not_asked.content()))
    lines = {
        "refused: bern has not signed this statement": [*others(honest, "bern"), forged],
        "refused: thun is not in the approved roster": [*honest.values(), not_asked],
        "refused: a site is twice in the set": [*honest.values(), honest["bern"]],
        "refused: what this site has stated is not in the set": others(honest, "chur"),
        "refused: the set has 2 sites, at least 3 are needed": [honest["bern"], honest["chur"]],
    }
    for line, statements in lines.items():
        question = ShareQuestion(statements)
        assert refused(lambda q=question: masked.sites["chur"].share(q)) == line  # type: ignore[misc]
    server = Sum(FOUR).server
    line = "refused: bern has not signed this statement"
    assert refused(lambda: server.take_statement("bern", forged)) == line


def others(statements: dict[str, Statement], name: str) -> list[Statement]:
    return [statement for other, statement in statements.items() if other != name]


@pytest.mark.parametrize("key", ["pair_key", "box_key"])
def test_a_key_that_everybody_knows_the_secret_to_is_refused(key: str) -> None:
    masked = Sum(FOUR).up_to("state")
    statements = masked.server.state.by_name
    statement = signed(statements["bern"], **{key: "0" * 64})
    question = ShareQuestion([*others(statements, "bern"), statement])
    line = "refused: the key that bern has stated is none"
    assert refused(lambda: masked.sites["chur"].share(question)) == line
    assert refused(lambda: Sum(FOUR).server.take_statement("bern", statement)) == line


def test_a_site_that_signs_another_roster_than_it_has_approved_makes_no_keys() -> None:
    site = Site(FOUR, "bern", part(0), terms_of(FIVE))
    assert refused(site.state_keys) == (
        "refused: the round is of another roster than this site has approved"
    )


@pytest.mark.parametrize(
    ("minimum", "least", "allowed"), [(3, None, 4), (4, 5, 5), (6, None, 4), (6, 3, 3)]
)
def test_a_minimum_below_what_a_site_allows_or_above_its_roster_is_refused(
    minimum: int, least: int | None, allowed: int
) -> None:
    """Of five sites, a coordinator would choose two that collude with it, and one other."""
    side = SiteSide(Member("bern", key_of("bern"), roster_of(FIVE)), least)
    terms = terms_of(FIVE, minimum=minimum)
    assert refused(lambda: side.state_keys(terms, part(0), None)) == (
        f"refused --secure-minimum {minimum}: this site allows {allowed} to 5, of the 5 sites that "
        "it has approved"
    )
    for fine in (allowed, 5):
        side.state_keys(terms_of(FIVE, minimum=fine), part(0), None)


# One set for a site's secrets


TEN = tuple(f"site{number}" for number in range(10))
THREE = TEN[:3]


def ask_three_again(masked: Sum) -> ShareQuestion:
    """Return the question to three of ten sites that have shared their secrets with all."""
    return ShareQuestion([masked.server.state.by_name[name] for name in THREE])


def test_secrets_are_shared_with_one_set_only() -> None:
    masked = Sum(TEN).up_to("share")
    question = ask_three_again(masked)
    for name in THREE:
        assert refused(lambda n=name: masked.sites[n].share(question)) == (  # type: ignore[misc]
            "refused: this site has shared its secrets with another set"
        )


def test_shared_with_two_sets_an_update_could_be_read_without_anyone_colluding() -> None:
    """Why a site must not forget: here three of ten have, and share their secrets once more.

    As a set of their own they tell their own masks. The seven others miss them, and tell their pair
    keys. Each keeps to the rules.
    """
    masked = Sum(TEN, {"mask": THREE}).up_to("state")
    before = {name: masked.sites[name].memory for name in THREE}
    masked.share()
    few = Sum(THREE, changes={"roster": masked.terms.roster, "total_cases": 100})
    few.terms = masked.terms
    few.server = ServerSide(roster_of(TEN), ServerState(masked.terms))
    few.sites = {name: masked.sites[name] for name in THREE}
    masked.go(["mask", "confirm", "open"])
    for name in THREE:
        few.sites[name].memory = before[name]
    few.up_to("open")

    told = masked.server.state.opened
    stated = masked.server.state.by_name["site0"]
    place = SECRET_BYTES * TEN.index("site0")
    shares = {TEN.index(n): to_bytes(t)[place : place + SECRET_BYTES] for n, t in told.items()}
    pair = combine(shares, 10)
    assert public_hex(pair) == stated.pair_key
    vector, context = few.vectors["site0"], few.server.state.context
    own = bytes.fromhex(few.server.state.secrets["site0"])
    add_stream(vector, MaskKeys.of_self(own, context).vector, -1)
    for other in ("site1", "site2"):  # site0 adds what it shares with those that come after it
        agreed = agree(pair, few.server.state.by_name[other].pair_key, other)
        add_stream(vector, MaskKeys.of_pair(agreed, context, "site0", other).vector, -1)
    assert np.array_equal(vector, masked.parts["site0"].ring(masked.terms))


def test_a_new_attempt_has_new_keys() -> None:
    masked = Sum(FIVE).up_to("share")
    site = masked.sites["chur"]
    first = site.state
    statement = site.state_keys(attempt=1)
    assert statement.terms == first.terms
    for before, after in (
        (first.statement.pair_key, statement.pair_key),
        (first.statement.box_key, statement.box_key),
        (first.statement.self_commitment, statement.self_commitment),
    ):
        assert before != after
    assert refused(lambda: site.state_keys(attempt=0)) == (
        "refused attempt 1: this site has gone on to 2"
    )
    assert refused(lambda: site.share(masked.server.share_question())) == (
        "refused: what this site has stated is not in the set"
    )


# Masks


def test_the_set_to_mask_for_is_of_the_sites_that_shared_and_of_enough() -> None:
    masked = Sum(FIVE).up_to("share")
    boxes = masked.server.mask_questions()["bern"].boxes
    site = masked.sites["bern"]
    strange = MaskQuestion({**boxes, "zug": boxes["chur"]})
    few = MaskQuestion({name: boxes[name] for name in ("basel", "chur")})
    own = MaskQuestion({**boxes, "bern": boxes["chur"]})
    stranger = "refused: not among those it shared its secrets with"
    assert refused(lambda: site.mask(strange)) == f"{stranger}: zug"
    assert refused(lambda: site.mask(own)) == f"{stranger}: bern"
    assert refused(lambda: site.mask(few)) == (
        "refused: the set to mask for has 3 sites, at least 4 are needed"
    )


def test_a_minimum_above_the_threshold_counts() -> None:
    masked = Sum(FIVE, changes={"minimum": 5}).up_to("share")
    boxes = dict(masked.server.mask_questions()["bern"].boxes)
    del boxes["thun"]
    assert refused(lambda: masked.sites["bern"].mask(MaskQuestion(boxes))) == (
        "refused: the set to mask for has 4 sites, at least 5 are needed"
    )


def test_an_update_is_masked_for_one_set_only() -> None:
    masked = Sum(FIVE).up_to("mask")
    boxes = dict(masked.server_questions["bern"].boxes)
    del boxes["thun"]
    assert refused(lambda: masked.sites["bern"].mask(MaskQuestion(boxes))) == (
        "refused: this site has masked its update for others before"
    )


def test_nothing_is_masked_but_what_the_keys_were_made_for() -> None:
    masked = Sum(FOUR).up_to("share")
    site, question = masked.sites["bern"], masked.server.mask_questions()["bern"]
    site.contribution = part(9)
    assert refused(lambda: site.mask(question)) == (
        "refused: the update on the disk is not the one that keys were made for"
    )
    untouched = Sum(FOUR).up_to("state").sites["bern"]
    assert refused(lambda: untouched.mask(question)) == (
        "refused: this site has not shared its secrets"
    )


# Survivors


def test_survivors_are_enough_of_those_masked_for_and_this_site_is_one() -> None:
    masked = Sum(FIVE).up_to("mask")
    signatures = masked.server.confirm_question().masked
    site = masked.sites["bern"]

    def line(names: tuple[str, ...]) -> str:
        question = ConfirmQuestion({name: signatures[name] for name in names})
        return refused(lambda: site.confirm(question))

    assert line(("bern", "chur", "genf")) == (
        "refused: the list of survivors has 3 sites, at least 4 are needed"
    )
    assert line(("basel", "chur", "genf", "thun")) == (
        "refused: this site is not among the survivors"
    )
    zug = ConfirmQuestion({**signatures, "zug": signatures["bern"]})
    assert refused(lambda: site.confirm(zug)) == ("refused: not among those it masked for: zug")
    forged = ConfirmQuestion({**signatures, "chur": signatures["genf"]})
    assert (
        refused(lambda: site.confirm(forged)) == "refused: chur has not signed this set to mask for"
    )


def test_survivors_have_all_masked_for_the_same_set() -> None:
    """Told that thun is not there, bern masks for four, and the others for five."""
    masked = Sum(FIVE).up_to("share")
    questions = masked.server.mask_questions()
    boxes = dict(questions["bern"].boxes)
    del boxes["thun"]
    questions["bern"] = MaskQuestion(boxes)
    answers = {name: masked.sites[name].mask(question)[0] for name, question in questions.items()}
    survivors = ConfirmQuestion({name: answer.signature for name, answer in answers.items()})
    assert refused(lambda: masked.sites["chur"].confirm(survivors)) == (
        "refused: bern has not signed this set to mask for"
    )


def test_a_site_hears_of_one_list_of_survivors_only() -> None:
    masked = Sum(FIVE).up_to("mask")
    signatures = dict(masked.server.confirm_question().masked)
    site = masked.sites["bern"]
    site.confirm(ConfirmQuestion(signatures))
    del signatures["thun"]
    assert refused(lambda: site.confirm(ConfirmQuestion(signatures))) == (
        "refused: this site has confirmed other survivors before"
    )


def test_a_sum_is_opened_after_enough_have_confirmed_the_same_list() -> None:
    masked = Sum(FIVE).up_to("mask")
    everybody = dict(masked.server.confirm_question().masked)
    without_thun = {name: everybody[name] for name in FOUR}
    lists = {"basel": everybody, "bern": everybody, "chur": without_thun, "genf": without_thun}
    confirmed = {
        name: masked.sites[name].confirm(ConfirmQuestion(survivors)).signature
        for name, survivors in lists.items()
    }
    site = masked.sites["bern"]
    two = OpenQuestion({name: confirmed[name] for name in ("basel", "bern")})
    assert refused(lambda: site.open_shares(two)) == (
        "refused: the list of signatures has 2 sites, at least 4 are needed"
    )
    assert refused(lambda: site.open_shares(OpenQuestion(confirmed))) == (
        "refused: chur has not signed this list of survivors"
    )
    zug = OpenQuestion({**confirmed, "zug": confirmed["bern"]})
    assert refused(lambda: site.open_shares(zug)) == "refused: not among the survivors: zug"
    unasked = Sum(FIVE).up_to("mask").sites["bern"]
    assert refused(lambda: unasked.open_shares(two)) == (
        "refused: this site has confirmed no survivors"
    )


def test_of_each_site_one_share_is_told() -> None:
    masked = Sum(FIVE, {"mask": ["thun"]}).up_to("open")
    state = masked.server.state
    told = {
        holder: unpack(to_bytes(text), SECRET_BYTES, list(FIVE), holder)
        for holder, text in state.opened.items()
    }
    for name in FIVE:
        shares = {FIVE.index(holder): pieces[name] for holder, pieces in told.items()}
        stated = state.by_name[name]
        secret = combine(shares, 5)
        assert (commitment(secret) == stated.self_commitment) == (name != "thun")
        assert (public_hex(secret) == stated.pair_key) == (name == "thun")


# A round again


def after_masking(**changes: object) -> Callable[[], Statement]:
    """Return a site that has masked an update of round 3, asked to make keys for another one."""
    masked = Sum(FOUR, changes={"server_round": 2}).up_to("mask")
    site = masked.sites["bern"]
    site.terms = replace(site.terms, **changes)  # type: ignore[arg-type]
    return site.state_keys


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": B}, "refused round 3 with another model: this site has masked an update of it"),
        ({"task": B}, "refused round 3 with another task: this site has masked an update of it"),
        ({"server_round": 1}, "refused round 2: this site has gone on to round 3"),
        ({"server_round": 1, "model": B}, "refused round 2: this site has gone on to round 3"),
    ],
)
def test_a_round_is_not_masked_again_with_something_else(
    changes: dict[str, object], line: str
) -> None:
    assert refused(after_masking(**changes)) == line


def test_a_masked_round_has_no_new_attempt_and_no_other_update() -> None:
    site = Sum(FOUR).up_to("mask").sites["bern"]
    assert refused(lambda: site.state_keys(attempt=1)) == (
        "refused a new attempt: this site has masked an update of round 1"
    )
    site.contribution = part(9)
    assert refused(site.state_keys) == "refused: this site has masked another update of this round"


@pytest.mark.parametrize("changes", [{"server_round": 3}, {"run": "run2"}])
def test_the_next_round_and_another_run_have_keys_of_their_own(changes: dict[str, object]) -> None:
    masked = Sum(FOUR, changes={"server_round": 2}).up_to("mask")
    site = masked.sites["bern"]
    before = site.state
    site.terms = replace(site.terms, **changes)  # type: ignore[arg-type]
    after = site.state_keys()
    assert after.terms == site.terms
    assert after.pair_key != before.statement.pair_key
    assert site.state.self_secret != before.self_secret


def test_rounds_of_a_run_that_was_left_for_another_one_are_remembered() -> None:
    """Else the same update could be masked again, for another set of sites."""
    site = Sum(FOUR, changes={"server_round": 2}).up_to("mask").sites["bern"]
    first = site.terms
    for other in ("run2", "run3"):  # keys are made, and nothing is masked
        site.terms = replace(first, run=other)
        site.state_keys()
    site.terms = first
    assert refused(site.state_keys) == (
        "refused round 3 of run run1: this site has masked its updates up to round 3, and another "
        "run's since"
    )
    site.terms = replace(first, server_round=3)
    site.state_keys()
    assert site.state.past == {"run1": 2}


def test_a_round_that_was_not_masked_may_be_trained_anew() -> None:
    site = Sum(FOUR).up_to("share").sites["bern"]
    site.terms, site.contribution = replace(site.terms, model=B), part(9)
    assert site.state_keys().terms.model == B
    assert site.state.statements == []


@pytest.mark.parametrize("other_spelling", [False, True])
def test_a_site_that_states_anothers_key_as_its_own_is_refused(other_spelling: bool) -> None:
    """It has no secret to it, and needs none: the two masks of a third site would cancel."""
    masked = Sum(FOUR).up_to("state")
    stated = masked.server.state.by_name
    thief, owner = masked.sites[FOUR[3]], stated[FOUR[0]]
    key = bytearray.fromhex(owner.pair_key)
    if other_spelling:  # X25519 does not look at the last bit
        key[31] ^= 0x80
    copied = signed(stated[thief.name], pair_key=key.hex())
    everybody = [copied if s.site == thief.name else s for s in stated.values()]
    line = refused(lambda: masked.sites[FOUR[1]].share(ShareQuestion(everybody)))
    assert ("not in its usual form" if other_spelling else "a key is stated twice") in line


# What cannot be added

TENSORS = (Tensor("stem.weight", 0), Tensor("bn.running_var", 20), Tensor("head.bias", 40))


@pytest.mark.parametrize("value", [np.nan, np.inf, -8.001, 9.0])
def test_a_change_beyond_the_range_is_refused_with_its_tensor(value: float) -> None:
    change = np.zeros(50, np.float32)
    change[30] = value
    contribution = Contribution(change, 10.0, (0, 0), (0.0,))
    assert refused(lambda: contribution.check(terms_of(FOUR), TENSORS)) == (
        "a change of bn.running_var cannot be added: it is not finite or beyond 8 (--secure-range)"
    )
    assert "of weight 30 cannot" in refused(lambda: contribution.check(terms_of(FOUR)))


def test_the_range_is_not_rounded_to_what_a_weight_can_be() -> None:
    """The next number of 32 bits after 1 would wrap around in the sum of three sites."""
    change = np.full(50, np.nextafter(np.float32(1), np.float32(2)), np.float32)
    terms = terms_of(FOUR, largest_change=1.00000006)
    assert "beyond 1 " in refused(lambda: Contribution(change, 10.0, (0, 0), (0.0,)).check(terms))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"weight": 41.0}, "a weight of 41 cases cannot be added: all sites together have 40"),
        ({"weight": 0.0}, "a weight of 0 cases cannot be added: all sites together have 40"),
        ({"weight": np.nan}, "a weight of nan cases cannot be added: all sites together have 40"),
        ({"counts": (-1, 0)}, f"a count is not between 0 and {2**56 - 1}"),
        ({"counts": (2**56, 0)}, f"a count is not between 0 and {2**56 - 1}"),
        (
            {"values": (np.nan,)},
            "cannot be added to a sum: a value nan is not between -4.29497e+09 and 4.29497e+09",
        ),
        (
            {"values": ()},
            "an update of (50, 2, 0) weights, counts and values cannot be added: agreed are "
            "(50, 2, 1), in float32",
        ),
        (
            {"change": np.zeros(50)},
            "an update of (50, 2, 1) weights, counts and values cannot be added: agreed are "
            "(50, 2, 1), in float32",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_told(
    changes: dict[str, object], line: str
) -> None:
    contribution = replace(part(0), **changes)  # type: ignore[arg-type]
    site = Site(FOUR, "bern", contribution, terms_of(FOUR))
    assert refused(site.state_keys) == line
    assert not site.memory


# What a server refuses a site


def test_an_answer_is_taken_once_in_its_stage_from_whom_was_asked() -> None:
    masked = Sum(FOUR, {"state": ["genf"]}).up_to("share")
    server, site = masked.server, masked.sites["bern"]
    again = site.share(server.share_question())
    assert refused(lambda: server.take_shares("bern", again)) == "bern answered twice"
    assert refused(lambda: server.take_shares("genf", replace(again, site="genf"))) == (
        "genf was not asked: it is not in the set of this sum"
    )
    server.mask_questions()
    assert refused(lambda: server.take_shares("bern", again)) == (
        "bern came too late: the sum is at stage mask"
    )


def test_shares_for_too_few_sites_are_refused() -> None:
    masked = Sum(FOUR).up_to("state")
    shares = masked.sites["bern"].share(masked.server.share_question())
    short = replace(shares, boxes=to_text(to_bytes(shares.boxes)[:-60]))
    assert refused(lambda: masked.server.take_shares("bern", short)) == (
        "refused: bern sent 120 bytes of shares, not 60 for each of 3 sites"
    )


def test_a_vector_that_is_none_is_not_added() -> None:
    masked = Sum(FOUR).up_to("share")
    answer, vector = masked.sites["bern"].mask(masked.server.mask_questions()["bern"])
    server = masked.server
    floats = vector.view(np.float32)
    assert refused(lambda: server.take_masked("bern", answer, floats)) == (  # type: ignore[arg-type]
        "bern sent float32 (50,) in place of the weights"
    )
    assert "uint32 (49,)" in refused(lambda: server.take_masked("bern", answer, vector[1:]))
    short = replace(answer, tail=to_text(to_bytes(answer.tail)[:24]))
    assert refused(lambda: server.take_masked("bern", short, vector)) == (
        "bern sent 24 bytes in place of 4 counts and sums"
    )
    forged = replace(answer, signature="A" * 80)
    assert refused(lambda: server.take_masked("bern", forged, vector)) == (
        "refused: bern has not signed this set to mask for"
    )
    assert server.total is None


def test_another_secret_than_the_one_that_was_stated_is_refused() -> None:
    masked = Sum(FOUR, {"open": ["bern"]}).up_to("open")
    opened = masked.sites["bern"].open_shares(masked.server.open_question())
    wrong = replace(opened, own_secret="0" * 32)
    assert refused(lambda: masked.server.take_opened("bern", wrong)) == (
        "bern told another secret than the one that it has stated"
    )
    assert masked.server.mean().sites == FOUR  # by the shares of the three others


# The roster


def test_a_roster_has_three_to_128_sites_with_a_key_each() -> None:
    keys = {name: key_of(name).public_key() for name in NAMES}
    two = {name: keys[name] for name in NAMES[:2]}
    assert refused(lambda: Roster.of(two), SettingsError) == (
        "--secure-aggregation with 2 sites: it takes 3 to 128."
    )
    many = {f"site{number}": keys["bern"] for number in range(129)}
    assert "with 129 sites" in refused(lambda: Roster.of(many), SettingsError)
    twice = {**keys, "zug": keys["bern"]}
    assert "bern and zug have the same key" in refused(lambda: Roster.of(twice), SettingsError)


def test_a_roster_needs_the_sites_own_key() -> None:
    roster = roster_of(FOUR)
    for name, key in (("bern", key_of("chur")), ("zug", key_of("zug"))):
        line = refused(lambda n=name, k=key: Member(n, k, roster), SettingsError)  # type: ignore[misc]
        assert line.startswith(f"the roster of the federation has another key for {name} than this")


def test_the_hash_of_a_roster_is_of_names_and_keys_not_of_comments() -> None:
    roster = roster_of(FOUR)
    commented = Roster({name: f"{line} root@pc7" for name, line in roster.keys.items()})
    assert commented.hash() == roster.hash()
    renamed = {("zug" if name == "bern" else name): line for name, line in roster.keys.items()}
    assert Roster(renamed).hash() != roster.hash()
