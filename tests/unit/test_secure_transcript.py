"""What a server sees of a masked sum says nothing of a site but through the sum.

Each look that should find nothing is tried on what it should find, too.
"""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pytest
from masked_sum import NAMES, Sum, part
from scipy import stats

from nnunetv2_federated.secure.arithmetic import Ring, Tail, tail_of
from nnunetv2_federated.secure.keys import MaskKeys, agree, public_hex
from nnunetv2_federated.secure.masking import Words, add_stream, masks_of, put_on, sign_of
from nnunetv2_federated.secure.messages import to_bytes
from nnunetv2_federated.secure.site_state import SiteState

FOUR = NAMES[:4]
LENGTH = 20_000
WINDOW = 16
"""Values in a row that are looked for."""


@pytest.fixture(scope="module")
def seen() -> Sum:
    """A sum of four, of which genf is lost while its masked vector is on its way."""
    parts = {name: part(i, LENGTH) for i, name in enumerate(FOUR)}
    masked = Sum(FOUR, {"confirm": ["genf"]}, parts, {"parameters": LENGTH})
    masked.up_to("mask")
    # its vector has been seen, and is taken out of the sum as if it had come too late
    total = masked.server.total
    assert total is not None
    total -= masked.vectors["genf"]
    state = masked.server.state
    kept = {name: text for name, text in state.masked.items() if name != "genf"}
    tails = [masked.sites[name].state.masked for name in kept]
    tail = np.sum([tail_of(to_bytes(m.tail)) for m in tails if m is not None], axis=0)
    masked.server.state = type(state)(
        state.terms, "mask", state.statements, state.boxes, kept, [int(entry) for entry in tail]
    )
    masked.go(["confirm", "open"])
    return masked


def windows(values: np.ndarray) -> set[bytes]:
    """Return the bytes of stretches of values, as a search would look for them."""
    return {values[i : i + WINDOW].tobytes() for i in range(0, values.size - WINDOW, WINDOW)}


def found_in(wire: Iterable[bytes], wanted: set[bytes]) -> bool:
    """Whether one of the stretches is anywhere in what was sent, at any offset."""
    everything = b"|".join(wire)
    return any(stretch in everything for stretch in wanted)


def rings(masked: Sum) -> dict[str, Ring]:
    return {name: p.ring(masked.terms) for name, p in masked.parts.items()}


def test_no_stretch_of_an_update_is_in_what_passes_the_server(seen: Sum) -> None:
    record = [*seen.wire, seen.server.state.to_json().encode()]
    unmasked = rings(seen)
    for name, contribution in seen.parts.items():
        few = windows(contribution.change[:800]) | windows(unmasked[name][:800])
        assert len(few) > 90
        assert not found_in(record, few)
        # and the same search finds what was sent without masks
        assert found_in([*record, unmasked[name].tobytes()], few)


def uniform(values: Ring) -> float:
    """Return the smallest p by chi-square that the bytes of one place are uniform."""
    places = values.view(np.uint8).reshape(-1, 4)
    return float(min(stats.chisquare(np.bincount(p, minlength=256)).pvalue for p in places.T))


def related(values: Ring, unmasked: Ring) -> float:
    """Return the correlation with an update in units of what chance makes of it."""
    pair = (values.view(np.int32).astype(float), unmasked.view(np.int32).astype(float))
    return float(abs(np.corrcoef(*pair)[0, 1]) * np.sqrt(values.size))


def states(masked: Sum) -> dict[str, SiteState]:
    return {name: site.state for name, site in masked.sites.items()}


def own_mask_off(vector: Ring, state: SiteState) -> Ring:
    values, keys = vector.copy(), MaskKeys.of_self(bytes.fromhex(state.self_secret), state.context)
    add_stream(values, keys.vector, -1)
    return values


def pair_masks_off(vector: Ring, state: SiteState) -> Ring:
    values, secret = vector.copy(), bytes.fromhex(state.pair_secret)
    for other in state.boxes:
        agreed = agree(secret, state.by_name[other].pair_key, other)
        pair = MaskKeys.of_pair(agreed, state.context, state.site, other)
        add_stream(values, pair.vector, -sign_of(state.site, other))
    return values


def test_a_vector_looks_random_also_without_what_the_server_is_told(seen: Sum) -> None:
    unmasked, known = rings(seen), states(seen)
    for name, vector in seen.vectors.items():
        # of a survivor the own mask is told, of one that was lost the pair masks
        off = pair_masks_off if name == "genf" else own_mask_off
        for values in (vector, off(vector, known[name])):
            assert uniform(values) > 1e-6
            assert related(values, unmasked[name]) < 5


def test_a_vector_without_any_mask_fails_the_same_looks(seen: Sum) -> None:
    for name, state in states(seen).items():
        bare = own_mask_off(pair_masks_off(seen.vectors[name], state), state)
        assert np.array_equal(bare, rings(seen)[name])
        assert uniform(bare) < 1e-6
        assert related(bare, rings(seen)[name]) > 100


def test_the_sum_of_the_survivors_is_there_all_the_same(seen: Sum) -> None:
    mean = seen.server.mean()
    assert mean.sites == ("basel", "bern", "chur")
    exact = np.mean([seen.parts[n].change.astype(float) for n in mean.sites], axis=0)
    assert np.abs(mean.change - exact).max() < 1e-7


# Exactly: a ring of four elements, every mask that there can be

QUARTER = 1 << 30
"""Multiples of it, modulo 2**32, are added like the integers modulo 4."""
MASKS = ("a", "b", "c", "ab", "ac", "bc")
EVERY = np.array(list(itertools.product(range(4), repeat=len(MASKS))), np.uint32) * QUARTER
"""All 4**6 values that three own masks and three pair masks can have, shape (4096, 6)."""


def add_every(values: Words, key: bytes, sign: int) -> None:
    """Add all values of a mask at once, one to each element."""
    values += EVERY[:, MASKS.index(key.decode())] * np.uint32(sign % 2**32)


def uploads(inputs: Sequence[int]) -> dict[str, Ring]:
    """Return what three sites send for inputs modulo 4, for each value of the masks."""
    sent = {}
    for name, value in zip("abc", inputs, strict=True):
        vector = np.full(len(EVERY), value * QUARTER, np.uint32)
        keys = {other: "".join(sorted(name + other)).encode() for other in "abc" if other != name}
        pairs = {other: MaskKeys(key, key) for other, key in keys.items()}
        tail: Tail = np.empty(0, np.uint64)
        own = MaskKeys(name.encode(), name.encode())
        put_on(
            vector,
            tail,
            masks_of(name, own, pairs),
            lambda v, k, s: add_every(v, k, s) if v.size else None,
        )
        sent[name] = vector
    return sent


def distribution(columns: Mapping[str, Ring], told: Iterable[str]) -> bytes:
    """Return how often each combination of uploads and masks that are told occurs, as bytes."""
    masks = [EVERY[:, MASKS.index(mask)] for mask in told]
    digits = [column // QUARTER for column in (*columns.values(), *masks)]
    numbers = sum(digit.astype(np.int64) * 4**place for place, digit in enumerate(digits))
    return np.sort(np.asarray(numbers)).tobytes()


@pytest.mark.parametrize(
    ("told", "survivors"),
    [(("a", "b", "c"), (0, 1, 2)), (("a", "b", "ac", "bc"), (0, 1))],
    ids=["all survive", "the vector of c comes too late"],
)
def test_inputs_of_one_sum_cannot_be_told_apart(
    told: tuple[str, ...], survivors: tuple[int, ...]
) -> None:
    seen_of: dict[int, set[bytes]] = {}
    for inputs in itertools.product(range(4), repeat=3):
        total = sum(inputs[i] for i in survivors) % 4
        seen_of.setdefault(total, set()).add(distribution(uploads(inputs), told))
    assert [len(seen_of[total]) for total in range(4)] == [1, 1, 1, 1]
    assert len(set.union(*seen_of.values())) == 4  # and each sum can be told from the others


def test_with_both_secrets_of_a_site_inputs_can_be_told_apart() -> None:
    one, other = ((1, 0, 0), (0, 1, 0))
    told = ("a", "b", "c", "ab", "ac")
    assert distribution(uploads(one), told) != distribution(uploads(other), told)


def test_a_stream_is_aes_256_in_counter_mode_from_zero() -> None:
    """A block of zeros under a key of zeros is dc95c078 a2408989 ad48a214 92842087 (NIST AESAVS).

    Its words are read as little endian.
    """
    values = np.array([1, 0, 0, 0], np.uint32)
    add_stream(values, bytes(32), 1)
    stream = np.frombuffer(bytes.fromhex("dc95c078a2408989ad48a21492842087"), "<u4")
    assert values.tolist() == [int(stream[0]) + 1, *stream[1:].tolist()]
    wide = np.zeros(2, np.uint64)
    add_stream(wide, bytes(32), -1)
    assert wide.tolist() == [2**64 - int(word) for word in stream.view("<u8")]


def test_a_stream_goes_on_over_blocks() -> None:
    length = (1 << 18) + 5  # 1 MiB of 32 bits, and five more
    whole, twice = np.zeros(length, np.uint32), np.zeros(2, np.uint32)
    add_stream(whole, b"k" * 32, 1)
    add_stream(twice, b"k" * 32, 1)
    assert whole[:2].tolist() == twice.tolist()
    assert len(np.unique(whole)) > length - 100  # no block is the same as another one
    add_stream(whole, b"k" * 32, -1)
    assert not whole.any()


def test_no_two_masks_have_a_key_in_common() -> None:
    secret, other = b"s" * 16, b"o" * 16
    masks = [
        MaskKeys.of_self(secret, "context"),
        MaskKeys.of_self(secret, "another context"),
        MaskKeys.of_self(other, "context"),
        MaskKeys.of_pair(secret, "context", "bern", "oslo"),
        MaskKeys.of_pair(secret, "another context", "bern", "oslo"),
        # who states another's public key has none of its masks
        MaskKeys.of_pair(secret, "context", "lyon", "oslo"),
    ]
    assert len({key for mask in masks for key in (mask.vector, mask.tail)}) == 2 * len(masks)
    swapped = MaskKeys.of_pair(secret, "context", "oslo", "bern")
    assert swapped == MaskKeys.of_pair(secret, "context", "bern", "oslo")
    vector, tail = np.zeros(2, np.uint32), np.zeros(1, np.uint64)
    put_on(vector, tail, [(1, masks[0])])
    assert vector.tobytes() != tail.tobytes()  # each with a stream of its own
    put_on(vector, tail, [(-1, masks[0])])
    assert not vector.any()
    assert not tail.any()


def test_keys_are_derived_as_rfc_5869_has_it() -> None:
    info = b'nnunetv2-federated secure aggregation v1\n["self vector","context"]'
    extracted = hmac.digest(bytes(32), b"s" * 16, "sha256")
    expected = hmac.digest(extracted, info + b"\x01", "sha256")
    assert MaskKeys.of_self(b"s" * 16, "context").vector == expected


def test_two_sites_agree_on_the_same_secret_and_a_third_on_another() -> None:
    a, b, c = (bytes([number]) * 16 for number in range(3))
    assert agree(a, public_hex(b), "b") == agree(b, public_hex(a), "a")
    assert agree(a, public_hex(b), "b") != agree(c, public_hex(b), "b")
