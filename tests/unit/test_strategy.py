"""PolyLRStrategy around Flower's strategies, over the in-process grid and a real ClientApp."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from nnunetv2_federated.federation.errors import (
    CheckpointError,
    RoundError,
    SettingsError,
    SiteError,
)
from nnunetv2_federated.federation.learning_rates import poly_lr
from nnunetv2_federated.federation.messages import (
    WEIGHTS,
    SiteDescription,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import STRATEGIES, FederationSettings
from nnunetv2_federated.federation.update_bound import UpdateBound
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.participants import Participants, Requirements
from nnunetv2_federated.flower.records import (
    ARRAYS,
    CONFIG,
    num_bytes,
    pack_payload,
    pack_reply,
    pack_weights,
    reply,
    unpack_payload,
    unpack_weights,
)
from nnunetv2_federated.flower.sampling import SampledGrid, sample_sites, validation_share
from nnunetv2_federated.flower.site_grid import works_in_turn
from nnunetv2_federated.flower.strategies import averages, build_strategy, check_replies
from nnunetv2_federated.flower.strategy import PolyLRStrategy, RoundResult
from nnunetv2_federated.flower.strategy_state import dump, restore
from nnunetv2_federated.nnunet.training import torch_file

# By node id; in order of names it is bern, lyon, oslo, zug: the order of nodes must not matter.
NAMES = ("zug", "bern", "oslo", "lyon")
CASES = {"zug": 1, "bern": 2, "oslo": 5, "lyon": 8}
VALUES = {"zug": 1.0, "bern": 3.0, "oslo": 4.0, "lyon": 8.0}
VALIDATION = Validation(1, -0.5, [1.0], [0.0], [0.0])


def constant(name, task, received):
    """Whatever comes, the site answers with its own number."""
    del task
    return np.full_like(received, VALUES[name])


def step(name, task, received):
    del name, task
    return received + np.float32(2**-10)


def noisy(name, task, received):
    """Depends on the site, the round, the learning rate and every received value.

    Some steps are a million times as long as others: no federation for ``--max-update-norm auto``.
    """
    rng = np.random.default_rng([task.server_round, *name.encode()])
    step = task.lr * rng.standard_normal(received.size) * 10.0 ** rng.integers(-3, 4)
    return (received + step).astype(np.float32)


class Federation:
    """A grid of four sites that keeps what they were asked."""

    def __init__(
        self, behave=constant, spoil=None, transport_dtype="float32", declared=None, site_says=None
    ):
        self.tasks: list[tuple[str, TrainTask]] = []
        self._site_says = site_says or {}
        self._behave = behave
        self._transport_dtype = transport_dtype
        self._spoil = spoil or {}
        app = ClientApp()
        app.query("describe")(self._describe)
        app.train()(self._train)
        self.grid = InProcessGrid(app, len(NAMES), {})
        sites = tuple(SiteCases(name, "Dataset501_A", ("a",), ("b",)) for name in NAMES)
        run = Run("Dataset501_A", "2d", 0, "t", "p", "cpu", FederationSettings(), sites)
        self.results: list[RoundResult] = []
        self.participants = Participants(
            self.grid, run, Requirements("m", "p", declared or {}), Observer()
        )
        self.participants.gather()

    @staticmethod
    def _name(context):
        return NAMES[int(context.node_config["partition-id"])]

    def _describe(self, message, context):
        name = self._name(context)
        site = SiteDescription(name, CASES[name], CASES[name], "m", "p", self._site_says)
        return reply(message, site.to_json())

    def _train(self, message, context):
        name = self._name(context)
        task = TrainTask.from_json(unpack_payload(message.content, "site"))
        self.tasks.append((name, task))
        received = unpack_weights(message.content, self._transport_dtype)
        trained = self._behave(name, task, received)
        report = TrainReport(name, CASES[name], 1.0, VALIDATION, None, 0.0)
        dtype = self._transport_dtype
        answer = reply(message, report.to_json(), pack_reply(trained, received, dtype))
        if name in self._spoil:
            self._spoil[name](answer.content)
        return answer

    def strategy(self, settings, *, first_round=0, bound=None):
        return PolyLRStrategy(
            build_strategy(settings.strategy, settings.strategy_options),
            settings,
            [poly_lr(done, settings.rounds, 0.01) for done in range(settings.rounds)],
            self.participants,
            streaming=averages(settings.strategy),
            first_round=first_round,
            bound=bound,
            on_result=self.results.append,
        )

    def run(self, strategy, start, rounds):
        """Run rounds; return the weights after each."""
        after = []

        def keep(server_round, arrays):
            if server_round > 0:
                after.append(unpack_weights(RecordDict({ARRAYS: arrays})).copy())

        strategy.start(self.grid, pack_weights(start), num_rounds=rounds, evaluate_fn=keep)
        return after

    def one_round(self, settings, size=5):
        strategy = self.strategy(settings)
        (after,) = self.run(strategy, np.zeros(size, np.float32), 1)
        return after, self.results[-1]


def start_vector(size=5):
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


# Aggregation


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs(strategy):
    settings = FederationSettings(rounds=3, strategy=strategy, max_update_norm="none")
    federation = Federation(noisy)
    size = 40_000  # more than one block of the running mean
    after = federation.run(federation.strategy(settings), start_vector(size), 3)
    assert len(after) == 3
    for weights, earlier in zip(after, [start_vector(size), *after], strict=False):
        assert weights.dtype == np.float32
        assert weights.shape == (size,)
        assert np.isfinite(weights).all()
        assert not np.array_equal(weights, earlier)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # weighted by cases: 1*1 + 2*3 + 5*4 + 8*8, over 16
        ({}, [5.6875, 5.6875]),
        ({"strategy": "fedprox"}, [5.6875, 5.6875]),
        # the plain mean of 1, 3, 4 and 8
        ({"weighting": "uniform"}, [4.0, 4.0]),
        # momentum 0.9 by default: 5.6875 + 0.9 * 5.6875
        ({"strategy": "fedavgm"}, [5.6875, 10.80625]),
        # (3 + 4) / 2, between the tails
        ({"strategy": "fedmedian"}, [3.5, 3.5]),
        ({"strategy": "fedtrimmedavg", "strategy_options": {"beta": 0.25}}, [3.5, 3.5]),
        # the least sum of squares to its two nearest: bern, 1 + 4
        ({"strategy": "krum", "strategy_options": {"num_malicious_nodes": 0}}, [3.0, 3.0]),
        # eta 0.1 times 5.6875 / (5.6875 + 0.001)
        ({"strategy": "fedadagrad"}, [0.0999824]),
        # round 1: 0.1 * sqrt(1 - 0.99^2) / (1 - 0.9^2) * 0.56875 / (0.56875 + 0.001)
        ({"strategy": "fedadam"}, [0.0741157]),
    ],
)
def test_result_by_hand(settings, expected):
    settings = FederationSettings(rounds=2, **settings)
    federation = Federation()
    start = np.zeros(5, np.float32)
    after = federation.run(federation.strategy(settings), start, len(expected))
    for weights, value in zip(after, expected, strict=True):
        np.testing.assert_allclose(weights, value, rtol=2e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_replies_does_not_change_a_bit(strategy):
    federation = Federation(noisy)
    results = []
    for order in (None, 1, 2, 3):
        settings = FederationSettings(rounds=1, strategy=strategy, max_update_norm="none")
        wrapped = federation.strategy(settings)
        arrays = pack_weights(start_vector(1000))
        messages = wrapped.configure_train(1, arrays, ConfigRecord(), federation.grid)
        replies = list(federation.grid.send_and_receive(messages))
        if order is not None:
            random.Random(order).shuffle(replies)  # noqa: S311
        result, _ = wrapped.aggregate_train(1, replies)
        results.append(unpack_weights(RecordDict({ARRAYS: result})).tobytes())
        assert [report.site for report in federation.results[-1].reports] == sorted(NAMES)
    assert len(set(results)) == 1


def test_a_federation_of_one_changes_nothing():
    """One site, FedAvg: what comes back from the server is bit for bit what the site trained."""
    federation = Federation(noisy)
    settings = FederationSettings(rounds=1, sites_per_round=1)
    after, outcome = federation.one_round(settings, size=1000)
    ((name, task),) = federation.tasks
    assert outcome.participants == [name]
    assert after.tobytes() == noisy(name, task, np.zeros(1000, np.float32)).tobytes()


def test_the_next_site_starts_only_when_the_reply_before_was_taken():
    federation = Federation()
    strategy = federation.strategy(FederationSettings())
    messages = strategy.configure_train(
        1, pack_weights(start_vector()), ConfigRecord(), federation.grid
    )
    replies = iter(federation.grid.send_and_receive(messages))
    for started in range(1, 5):
        next(replies)
        assert len(federation.tasks) == started


@pytest.mark.parametrize(("earlier", "expected"), [([1.0, 1.0, 1.0], [1, 1, 1]), ([], [1, 2, 1])])
def test_no_reply_stays_in_memory_once_it_is_judged(earlier, expected):
    """While a site trains, none of the replies before it is held, but two at a run's beginning."""
    size = 2_000_000  # so that nothing else counts
    held = []

    def behave(name, task, received):
        del name, task
        held.append(tracemalloc.get_traced_memory()[0] / received.nbytes)
        return received + np.float32(0.001)

    federation = Federation(behave)
    settings = FederationSettings(rounds=1)
    strategy = federation.strategy(settings, bound=UpdateBound.of(settings, 4, earlier))
    start = np.zeros(size, np.float32)
    tracemalloc.start()
    try:
        federation.run(strategy, start, 1)
    finally:
        tracemalloc.stop()
    # then only the running mean is, as long as one reply
    assert [round(now - held[0]) for now in held[1:]] == expected


def test_bytes_are_counted():
    settings = FederationSettings(rounds=1)
    _, outcome = Federation().one_round(settings)
    _, larger = Federation().one_round(settings, size=105)
    assert larger.bytes_down - outcome.bytes_down == 4 * 100 * 4  # sites, values, bytes of a value
    assert larger.bytes_up - outcome.bytes_up == 4 * 100 * 4
    assert num_bytes(RecordDict({CONFIG: ConfigRecord({"payload": "zürich"})})) == 7


# What a site is told

LR = [0.01, 0.007718895067235705, 0.005358867312681466, 0.0028717458874925874]


@pytest.mark.parametrize("first_round", [0, 2])
def test_every_site_gets_the_learning_rate_of_the_round(first_round):
    federation = Federation()
    settings = FederationSettings(rounds=4, local_epochs=3)
    strategy = federation.strategy(settings, first_round=first_round)
    federation.run(strategy, start_vector(), 4 - first_round)
    assert [(name, task.server_round) for name, task in federation.tasks] == [
        (name, r) for r in range(first_round, 4) for name in sorted(NAMES)
    ]
    for _, task in federation.tasks:
        assert task.lr == pytest.approx(LR[task.server_round], rel=1e-12, abs=0)
        assert task.local_epochs == 3
        assert task.proximal_mu == 0


def test_a_site_that_missed_rounds_gets_the_learning_rate_of_the_round():
    federation = Federation()
    settings = FederationSettings(rounds=4, sites_per_round=1)
    federation.run(federation.strategy(settings), start_vector(), 4)
    assert len({name for name, _ in federation.tasks}) > 1
    assert [task.lr for _, task in federation.tasks] == pytest.approx(LR, rel=1e-12, abs=0)


@pytest.mark.parametrize(("options", "mu"), [({}, 0.01), ({"proximal_mu": 0.5}, 0.5)])
def test_fedprox_sends_its_weight(options, mu):
    federation = Federation()
    settings = FederationSettings(rounds=2, strategy="fedprox", strategy_options=options)
    federation.run(federation.strategy(settings), start_vector(), 2)
    assert [task.proximal_mu for _, task in federation.tasks] == [mu] * 8


def test_the_sites_share_one_epoch_of_validation_of_the_received_model():
    federation = Federation()
    settings = FederationSettings(rounds=2, val_iterations=50)
    federation.run(federation.strategy(settings), start_vector(), 2)
    asked = [task.validate_received for _, task in federation.tasks]
    # nothing to judge before the first round; then 50 * (2, 8, 5, 1) / 16, rounded up
    assert asked == [0, 0, 0, 0, 7, 25, 16, 4]


def test_no_global_validation_asks_for_none():
    federation = Federation()
    settings = FederationSettings(rounds=2, global_validation=False)
    federation.run(federation.strategy(settings), start_vector(), 2)
    assert {task.validate_received for _, task in federation.tasks} == {0}


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ({"a": 1, "b": 3, "c": 0}, {"a": 13, "b": 38, "c": 0}),
        ({"a": 1, "b": 999}, {"a": 1, "b": 50}),  # at least one iteration
        ({"a": 0, "b": 0}, {"a": 0, "b": 0}),
        ({}, {}),
    ],
)
def test_validation_share_by_hand(cases, expected):
    assert validation_share(50, cases) == expected


# Sampling


@pytest.mark.parametrize(
    ("server_round", "expected"), [(0, "de"), (1, "cd"), (2, "be"), (3, "ae"), (4, "bc")]
)
def test_a_seed_keeps_its_sites(server_round, expected):
    for names in ("abcde", "edcba"):
        assert sample_sites(list(names), 2, 12345, server_round) == list(expected)


@pytest.mark.parametrize("count", [None, 5, 6])
def test_all_sites_take_part_by_default(count):
    assert sample_sites(list("ecadb"), count, 0, 0) == list("abcde")


def test_sampling_is_fair():
    drawn = Counter(name for r in range(500) for name in sample_sites(list("abcde"), 2, 7, r))
    assert sorted(drawn) == list("abcde")
    assert sum(drawn.values()) == 1000
    assert all(150 < count < 250 for count in drawn.values())  # 200 each, standard deviation 11
    other = [sample_sites(list("abcde"), 2, 8, r) for r in range(20)]
    assert other != [sample_sites(list("abcde"), 2, 7, r) for r in range(20)]


def test_only_sampled_sites_are_asked():
    federation = Federation()
    settings = FederationSettings(rounds=5, sites_per_round=2, seed=3)
    federation.run(federation.strategy(settings), start_vector(), 5)
    for server_round in range(5):
        asked = [name for name, task in federation.tasks if task.server_round == server_round]
        assert asked == sample_sites(list(NAMES), 2, 3, server_round)


# Replies that cannot be used


def set_report(**changes):
    def spoil(content):
        report = json.loads(unpack_payload(content))
        content[CONFIG] = pack_payload(json.dumps({**report, **changes}))

    return spoil


def set_data(data):
    def spoil(content):
        content[ARRAYS] = ArrayRecord({WEIGHTS: Array("float32", (5,), "numpy.ndarray", data)})

    return spoil


def set_arrays(*arrays):
    def spoil(content):
        content[ARRAYS] = ArrayRecord({str(i): Array(a) for i, a in enumerate(arrays)})

    return spoil


def set_value(index, value):
    def spoil(content):
        vector = unpack_weights(content).copy()
        vector[index] = value
        content[ARRAYS] = pack_weights(vector)

    return spoil


def fail(content):
    del content
    raise OSError("disk full")


GOOD = np.ones(5, np.float32)
BAD_REPLIES = [
    (fail, "OSError: disk full"),
    (set_value(-1, np.nan), "its weights are not finite"),
    (set_value(0, np.inf), "its weights are not finite"),
    (
        set_report(train_loss=float("nan")),
        "not a valid TrainReport: train_loss",
    ),
    (set_report(site="mars"), "answered as mars"),
    (set_report(site="bern"), "answered as bern"),
    (
        set_report(training_cases=0),
        "not a valid TrainReport: training_cases",
    ),
    (set_report(colour=1), "not a valid TrainReport"),
    (set_report(train_loss=None), "sent no training loss"),
    (set_report(training_cases="5"), "not a valid TrainReport"),
    (set_report(training_cases=float("inf")), "not a valid TrainReport"),
    (set_report(validation={}), "not a valid TrainReport"),
    (
        set_report(validation={"iterations": 1, "loss": 0.0, "tp": [1], "fp": [], "fn": [1]}),
        "not a valid TrainReport",
    ),
    (set_data(b"garbage"), "its weights cannot be read"),
    (set_arrays(GOOD[:4]), "sent 4 weights instead of 5"),
    (set_arrays(np.ones(6, np.float32)), "sent 6 weights instead of 5"),
    (set_arrays(GOOD.astype(np.float64)), "expected a flat float32 vector, got float64"),
    (set_arrays(GOOD[None]), "its weights cannot be read: not one flat array"),
    (set_arrays(GOOD, GOOD), "expected one array in a message, got 2"),
    (lambda content: content.pop(ARRAYS), "expected one array in a message, got 0"),
    (lambda content: content.pop(CONFIG), "a message without payload"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD_REPLIES)
def test_an_unusable_reply_ends_the_run_by_name(spoil, reason):
    federation = Federation(spoil={"oslo": spoil})
    with pytest.raises(RoundError, match=r"round 0: 3 of 4 sites .* 4 are required") as error:
        federation.one_round(FederationSettings(rounds=1))
    assert f"oslo: {reason}" in str(error.value)
    assert not any(f"{name}:" in str(error.value) for name in ("bern", "lyon", "zug"))


@pytest.mark.parametrize(("spoil", "reason"), BAD_REPLIES)
@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("fedavg", 71 / 11),  # (1*1 + 2*3 + 8*8) / 11, without oslo
        ("fedmedian", 3.0),
    ],
)
def test_min_replies_lets_the_round_go_on(strategy, expected, spoil, reason):
    federation = Federation(spoil={"oslo": spoil})
    settings = FederationSettings(rounds=1, min_replies=3, strategy=strategy)
    after, outcome = federation.one_round(settings)
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    assert [report.site for report in outcome.reports] == ["bern", "lyon", "zug"]
    assert list(outcome.failed) == ["oslo"]
    assert reason in outcome.failed["oslo"]


# Updates that are too long


def poisoned(names, answer):
    """These sites answer with ``answer`` everywhere, the others take a small step."""

    def behave(name, task, received):
        if name not in names:
            return received + np.float32(VALUES[name] * 2**-10)
        del task
        return np.full_like(received, answer)

    return behave


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("answer", [1e3, -1e30, 3e38])
@pytest.mark.parametrize("site", NAMES)
@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_a_poisoned_update_is_refused_whoever_sends_it(strategy, site, answer, dtype):
    settings = FederationSettings(rounds=2, strategy=strategy, min_replies=3, transport_dtype=dtype)
    federation = Federation(poisoned([site], answer), transport_dtype=dtype)
    wrapped = federation.strategy(settings)
    for weights in federation.run(wrapped, np.zeros(50, np.float32), 2):
        assert np.abs(weights).max() < 2 * 8 * 2**-10
    assert list(federation.results[-1].failed) == [site]
    assert "its update has a norm of" in federation.results[-1].failed[site]
    assert federation.results[-1].updates[site].outcome == "refused"
    assert sorted(report.site for report in federation.results[-1].reports) == sorted(
        {*NAMES} - {site}
    )


@pytest.mark.parametrize("strategy", ["fedadam", "fedyogi", "fedadagrad", "fedavgm"])
def test_one_poisoned_update_does_not_freeze_the_servers_optimizer(strategy):
    settings = FederationSettings(rounds=3, strategy=strategy, min_replies=3)
    results = []
    for behave in (poisoned(["oslo"], 1e30), poisoned([], 0)):
        federation = Federation(behave, spoil={} if results == [] else {"oslo": fail})
        results.append(federation.run(federation.strategy(settings), start_vector(), 3))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_that_overflow_together_are_both_named(strategy):
    """Their mean is 0, and every difference between them infinite."""

    def behave(name, task, received):
        del task
        extreme = {"bern": 3.4e38, "lyon": -3.4e38}
        return np.full_like(received, extreme[name]) if name in extreme else received + 1

    for limit in ("auto", "none"):
        settings = FederationSettings(rounds=1, strategy=strategy, max_update_norm=limit)
        with pytest.raises(RoundError, match=r"2 of 4 sites sent usable weights") as error:
            Federation(behave).one_round(settings)
        assert "bern: its update has a norm of 7.6e+38" in str(error.value)
        assert "lyon: its update has a norm of 7.6e+38" in str(error.value)
        assert "oslo:" not in str(error.value)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    # sent are 1/4, 1/4, 4 * 1/4 clipped to 1/2, and 1/4; the cases are 2, 8, 5 and 1
    [("fedavg", (2 + 8 + 2 * 5 + 1) / 16 / 4), ("fedmedian", 1 / 4)],
)
def test_clipped_by_hand(strategy, expected):
    def behave(name, task, received):
        del task
        return received + (1 if name == "oslo" else 0.25)

    settings = FederationSettings(
        rounds=1, strategy=strategy, max_update_norm=1.0, oversized_update="clip"
    )
    after, outcome = Federation(behave).one_round(settings, size=4)  # norms 1/2, and 2 at oslo
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    assert outcome.failed == {}
    assert asdict(outcome.updates["oslo"]) == {
        "norm": 2.0, "cosine": pytest.approx(1), "bound": 1.0, "outcome": "clipped"
    }  # fmt: skip
    assert outcome.updates["bern"].outcome == "accepted"


def test_the_record_of_updates_does_not_depend_on_the_order_of_replies():
    federation = Federation(noisy)
    records = []
    for order in (1, 2, 3):
        wrapped = federation.strategy(FederationSettings(rounds=1, min_replies=1))
        arrays = pack_weights(start_vector(40_000))
        messages = wrapped.configure_train(1, arrays, ConfigRecord(), federation.grid)
        replies = list(federation.grid.send_and_receive(messages))
        random.Random(order).shuffle(replies)  # noqa: S311
        wrapped.aggregate_train(1, replies)
        updates = federation.results[-1].updates
        records.append(json.dumps({site: asdict(update) for site, update in updates.items()}))
    assert len(set(records)) == 1
    assert list(json.loads(records[0])) == sorted(NAMES)


def test_every_failing_site_is_named_when_too_few_are_left():
    federation = Federation(spoil={"oslo": fail, "bern": set_value(0, np.nan)})
    with pytest.raises(RoundError, match=r"2 of 4 sites .* 3 are required") as error:
        federation.one_round(FederationSettings(rounds=1, min_replies=3))
    assert "bern: its weights are not finite; oslo: OSError: disk full" in str(error.value)


@pytest.mark.parametrize("min_replies", [None, 3])
def test_a_site_that_does_not_answer_is_named(min_replies):
    """A deployment's grid leaves out the replies that came too late."""
    federation = Federation()
    strategy = federation.strategy(FederationSettings(rounds=1, min_replies=min_replies))
    arrays = pack_weights(start_vector())
    messages = strategy.configure_train(1, arrays, ConfigRecord(), federation.grid)
    replies = list(federation.grid.send_and_receive(messages))
    late = [
        r for r in replies if federation.participants.sites[r.metadata.src_node_id].site != "bern"
    ]
    if min_replies is None:
        with pytest.raises(RoundError, match="bern: no reply"):
            strategy.aggregate_train(1, late)
    else:
        result, _ = strategy.aggregate_train(1, late)
        # without bern: 1*1 + 5*4 + 8*8, over 14
        np.testing.assert_allclose(next(iter(result.values())).numpy(), 85 / 14, rtol=1e-6)


def test_no_reply_at_all_is_a_failed_round_even_with_min_replies():
    federation = Federation(spoil=dict.fromkeys(NAMES, fail))
    with pytest.raises(RoundError, match="0 of 4 sites"):
        federation.one_round(FederationSettings(rounds=1, min_replies=1))


def test_sites_on_other_machines_need_a_grid_that_knows_them_by_their_keys():
    grid = Federation().grid
    run = Run(
        "Dataset501_A", "2d", 0, "t", "p", "cpu", FederationSettings(), (), remote_sites=("a",)
    )
    with pytest.raises(SettingsError, match="start it with nnUNetv2_federated_server"):
        Participants(grid, run, Requirements("m", "p"), Observer())


def test_times_add_up_where_one_site_works_after_another():
    assert works_in_turn(Federation().grid)
    assert not works_in_turn(SampledGrid([1]))  # as any Grid of Flower's own


# Strategies and their options


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("fedavg", {"eta": 1}, "eta: fedavg has no options"),
        ("fedprox", {"mu": 1}, "mu: fedprox has proximal_mu"),
        ("fedadam", {"eta": 0.1, "tua": 1}, "tua: fedadam has beta_1, beta_2, eta, eta_l, tau"),
        ("fedavg", {"fraction_train": 0.5}, "fraction_train: fedavg has no options"),
        ("fedtrimmedavg", {"beta": 0.5}, "fedtrimmedavg says: `beta` must be in the range"),
        ("krum", {"num_malicious_nodes": -1}, "num_malicious_nodes=-1: at least 0"),
    ],
)
def test_a_bad_strategy_option_is_refused(strategy, options, message):
    with pytest.raises(SettingsError, match="--strategy-option") as error:
        build_strategy(strategy, options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("strategy", "options", "fewest"),
    [
        ("fedtrimmedavg", {}, 5),  # 0.2 * 5 is 1
        ("fedtrimmedavg", {"beta": 0.4}, 3),
        ("krum", {"num_malicious_nodes": 1}, 5),  # 2 * 1 + 3
        ("krum", {}, 3),
        ("fedmedian", {}, 3),
    ],
)
def test_a_robust_strategy_needs_so_many_replies(strategy, options, fewest):
    check_replies(strategy, options, fewest)
    with pytest.raises(SettingsError, match=f"--strategy {strategy}: .* {fewest - 1} replies"):
        check_replies(strategy, options, fewest - 1)


def test_a_trimmed_mean_that_never_trims_is_refused():
    with pytest.raises(SettingsError, match=r"beta=0\.0 trims none"):
        check_replies("fedtrimmedavg", {"beta": 0.0}, 1000)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_an_averaging_strategy_needs_one(strategy):
    check_replies(strategy, {}, 1)


def test_options_reach_the_strategy():
    assert build_strategy("fedavgm", {}).server_momentum == 0.9
    assert build_strategy("fedavgm", {"server_momentum": 0.5}).server_momentum == 0.5
    assert build_strategy("krum", {"num_malicious_nodes": 1}).num_malicious_nodes == 1


def test_a_strategy_that_waits_for_more_sites_than_a_round_has_is_refused():
    """Flower would log 'waiting for nodes' for ever."""
    federation = Federation()
    strategy = federation.strategy(FederationSettings(sites_per_round=2))
    strategy.inner = FedAvg(min_available_nodes=3)
    with pytest.raises(SettingsError, match="FedAvg waits for 3 sites, a round has 2"):
        federation.run(strategy, start_vector(), 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, strategy):
    settings = FederationSettings(
        rounds=4, strategy=strategy, sites_per_round=3, max_update_norm="none"
    )
    whole = Federation(noisy)
    expected = whole.run(whole.strategy(settings), start_vector(), 4)

    first = Federation(noisy)
    interrupted = first.strategy(settings)
    weights = first.run(interrupted, start_vector(), 2)[-1]
    path = tmp_path / "state.pt"
    torch_file.save(path, {"strategy": dump(interrupted.inner)})

    second = Federation(noisy)
    resumed = second.strategy(settings, first_round=2)
    restore(resumed.inner, torch_file.load(path)["strategy"])
    after = second.run(resumed, weights, 2)
    assert [a.tobytes() for a in after] == [e.tobytes() for e in expected[2:]]


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_strategy_that_forgot_its_momentum_would_be_noticed(strategy):
    """The test above compares something: these strategies do remember."""
    settings = FederationSettings(rounds=4, strategy=strategy, max_update_norm="none")
    whole = Federation(noisy)
    expected = whole.run(whole.strategy(settings), start_vector(), 4)
    second = Federation(noisy)
    forgetful = second.strategy(settings, first_round=2)
    after = second.run(forgetful, expected[1], 2)
    assert after[-1].tobytes() != expected[-1].tobytes()


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        ("fedavg", set()),
        ("fedprox", set()),
        ("krum", set()),
        ("fedavgm", {"current_arrays", "momentum_vector"}),
        ("fedyogi", {"current_arrays", "m_t", "v_t"}),
    ],
)
def test_only_what_training_changes_is_kept(strategy, kept):
    settings = FederationSettings(rounds=1, strategy=strategy, max_update_norm="none")
    federation = Federation()
    wrapped = federation.strategy(settings)
    federation.run(wrapped, start_vector(), 1)
    assert dump(wrapped.inner).keys() == kept


def test_what_was_chosen_is_not_restored_but_what_was_learned_is():
    state = {"current_arrays": None, "m_t": None, "v_t": {"dict": {"a": 2.0}}, "eta": 0.1}
    strategy = build_strategy("fedadam", {"eta": 0.5})
    restore(strategy, state)  # of a version that kept everything
    assert (strategy.eta, strategy.v_t) == (0.5, {"a": 2.0})


def test_the_state_of_another_strategy_is_refused():
    with pytest.raises(CheckpointError, match="FedAvgM lacks current_arrays"):
        restore(build_strategy("fedavgm", {}), dump(build_strategy("fedavg", {})))


# Records


def test_weights_cross_the_wire_unchanged():
    vector = start_vector(1000)
    content = RecordDict({ARRAYS: pack_weights(vector)})
    assert unpack_weights(content).tobytes() == vector.tobytes()
    strided = np.stack([vector, vector], axis=1)[:, 0]
    assert unpack_weights(RecordDict({ARRAYS: pack_weights(strided)})).tobytes() == vector.tobytes()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    # 8 and 11 significant bits; 1 + 2**-8 lies half way and goes to the even neighbour, 1
    [("bfloat16", [3.140625, 1.0, -65536.0]), ("float16", [3.140625, 1.00390625, -60000.0])],
)
def test_weights_in_16_bits(dtype, expected):
    vector = np.array([np.pi, 1.00390625, -65535.0 if dtype == "bfloat16" else -6e4], np.float32)
    content = RecordDict({ARRAYS: pack_weights(vector, dtype)})
    assert unpack_weights(content, dtype).tolist() == expected
    assert num_bytes(content) - num_bytes(RecordDict({ARRAYS: pack_weights(vector)})) == -2 * 3


def test_what_is_not_finite_stays_so_in_16_bits():
    vector = np.array([np.nan, np.inf, -np.inf], np.float32)
    for dtype in ("float16", "bfloat16"):
        content = RecordDict({ARRAYS: pack_weights(vector, dtype)})
        np.testing.assert_array_equal(unpack_weights(content, dtype), vector)


def test_a_weight_that_does_not_fit_float16_is_named():
    with pytest.raises(SettingsError, match=r"float16: a weight of 7e\+04 .* use bfloat16"):
        pack_weights(np.array([1.0, 7e4], np.float32), "float16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_rounding_on_the_way_is_not_taken_from_the_global_model(dtype, strategy):
    """1.001 reaches the sites as 1.00098 or 1; each adds 2**-10, and so does the global model."""
    federation = Federation(step, None, dtype)
    settings = FederationSettings(rounds=3, strategy=strategy, transport_dtype=dtype)
    start = np.full(5, 1.001, np.float32)

    after = federation.run(federation.strategy(settings), start, 3)

    np.testing.assert_allclose(after[-1], 1.001 + 3 * 2**-10, rtol=2e-7)


def test_a_reply_of_another_dtype_is_refused():
    spoil = set_arrays(np.ones(5, np.float32))
    federation = Federation(spoil={"oslo": spoil}, transport_dtype="bfloat16")
    with pytest.raises(RoundError, match="oslo: expected a flat bfloat16 vector, got float32"):
        federation.one_round(FederationSettings(rounds=1, transport_dtype="bfloat16"))


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({CONFIG: ConfigRecord({"a": 1})})])
def test_a_message_without_content_is_refused(content):
    with pytest.raises(SiteError, match="expected one array in a message, got 0"):
        unpack_weights(content)
    with pytest.raises(SiteError, match="without payload"):
        unpack_payload(content)


def test_a_failing_site_does_not_hinder_the_next_message():
    federation = Federation(spoil={"zug": fail})
    strategy = federation.strategy(FederationSettings())
    arrays = pack_weights(start_vector())
    messages = strategy.configure_train(1, arrays, ConfigRecord(), federation.grid)
    answers = list(federation.grid.send_and_receive(messages))
    assert [answer.has_error() for answer in answers] == [False, False, False, True]
    assert answers[-1].error.reason == "OSError: disk full"
    assert [message.metadata.message_type for message in messages] == [MessageType.TRAIN] * 4


LUNG = {"labels": {"background": 0, "lung": 1}, "channel_names": {"0": "CT"}}
NESTED = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


def test_a_site_that_means_the_same_takes_part() -> None:
    Federation(declared=LUNG, site_says={"labels": LUNG["labels"], "modality": {"0": "CT"}})
    Federation(declared={"labels": LUNG["labels"]}, site_says=LUNG)  # the server says less
    Federation(declared=NESTED, site_says=NESTED)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (LUNG, {**LUNG, "labels": {"background": 0, "heart": 1}}, "labels .*'heart'.*'lung'"),
        (LUNG, {"labels": LUNG["labels"]}, "channel_names of its dataset.json is None"),
        (
            LUNG,
            {"labels": LUNG["labels"], "modality": {"0": "MR"}},
            r"channel_names .*'MR'.*'CT'",
        ),
        (
            NESTED,
            {**NESTED, "labels": dict(sorted(NESTED["labels"].items()))},
            r"labels .*'core': 2, 'whole'.*the order counts: .* the i-th region",
        ),
    ],
)
def test_a_site_that_means_something_else_is_refused(ours, theirs, message) -> None:
    with pytest.raises(SiteError, match=message):
        Federation(declared=ours, site_says=theirs)
