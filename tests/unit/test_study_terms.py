"""What a site approves of a study, and what of a trial is not in it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from nnunetv2_federated.experiment.train import find_other
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.halving import Halving
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.search_table import read_search_space
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyTerms
from nnunetv2_federated.flower.deployment.site.proposal_text import describe

BASE = FederationSettings(rounds=18, initial_lr=0.01)
SEARCH = {
    "initial_lr": {"low": 0.001, "high": 0.1, "log": True},
    "local_epochs": [1, 2],
    "strategy": ["fedavg", "fedprox"],
    "fedprox": {"proximal_mu": {"low": 0.01, "high": 1.0}},
}
TERMS = StudyTerms(
    study_id="abc",
    base=asdict(BASE),
    search=read_search_space(SEARCH, BASE).to_plain(),
    trials=27,
    rounds=126,
    reduction=3,
    rungs=2,
    score_iterations=200,
    evaluations=80,
)
FOUND = BASE.changed(
    initial_lr=0.05,
    local_epochs=2,
    rounds=9,
    strategy="fedprox",
    strategy_options={"proximal_mu": 0.5},
)


def trial(settings: FederationSettings, number: int = 1, **changes: Any) -> Proposal:
    content: dict[str, Any] = {
        "run_id": TERMS.run_id(number),
        "dataset": "Dataset501_A",
        "configuration": "2d",
        "fold": 0,
        "queue": {"2d": [0]},
        "trainer": "nnUNetTrainerFederated",
        "plans_name": "nnUNetPlans",
        "plans_hash": "0" * 64,
        "site_index": 0,
        "settings": asdict(settings),
        "study": TERMS,
        "trial": number,
    }
    return Proposal(**{**content, **changes})


def test_one_approval_covers_every_trial_of_the_study_and_no_other_study() -> None:
    first = trial(BASE, 0)
    assert trial(FOUND).approval() == trial(FOUND, 26).approval() == first.approval()
    assert Proposal.from_json(trial(FOUND).to_json()) == trial(FOUND)
    for changes in (
        *({"trials": 28}, {"rounds": 127}, {"score_iterations": 201}, {"hours": 1.0}),
        *({"evaluations": 81}, {"gigabytes": 1.0}, {"rungs": 3}),
    ):
        assert trial(BASE, 0, study=replace(TERMS, **changes)).approval() != first.approval()
    again = replace(TERMS, study_id="abd")
    assert trial(BASE, 0, study=again, run_id="abd.trial_000").approval() != first.approval()
    assert trial(BASE, 0, trainer="nnUNetTrainerOther").approval() != first.approval()
    # as a training of its own, a trial needs an approval of its own
    alone = trial(BASE, 0, study=None, trial=None)
    assert alone.approval() != first.approval()


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (1, {"initial_lr": 0.5}, "initial_lr 0.5: is not in the space"),
        (1, {"initial_lr": None}, "initial_lr None: is not in the space"),
        (1, {"local_epochs": 3}, "local_epochs 3: is not in the space"),
        (1, {"rounds": 18}, "rounds 18: approved is 9"),
        (1, {"strategy": "fedmedian", "strategy_options": {}}, "strategy fedmedian: is not in"),
        (1, {"strategy_options": {"proximal_mu": 2.0}}, "fedprox.proximal_mu 2.0: is not in"),
        (
            1,
            {"strategy_options": {"proximal_mu": 0.5, "mu": 1.0}},
            "mu.: 1.0}: approved is",
        ),
        (1, {"seed": 1}, "seed 1: approved is 12345"),
        (1, {"val_iterations": 500}, "val_iterations 500: approved is None"),
        (1, {"personal": "finetune"}, "personal finetune: approved is off"),
        (0, {}, "trial 0: rounds 9: approved is 18"),
        (27, {}, "approved are 27 trials, from 0"),
    ],
)
def test_a_trial_that_was_not_approved_is_no_proposal(
    number: int, changes: dict[str, Any], text: str
) -> None:
    content = asdict(FOUND) | changes
    good = trial(FOUND)
    bad = asdict(good) | {"trial": number, "run_id": TERMS.run_id(number), "settings": content}
    with pytest.raises(SiteError, match=text):
        Proposal.from_json(_as_json(bad))


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "abc.trial_002"},
        {"trial": None},
        {"study": None},
        {"npz": True},
        {"queue": {"2d": [0, 1]}},
        # its validation cases are those that it trains on
        {"fold": "all", "queue": {"2d": ["all"]}},
    ],
)
def test_a_trial_is_one_training_by_its_own_name(changes: dict[str, Any]) -> None:
    with pytest.raises(SiteError, match="not a valid Proposal"):
        Proposal.from_json(_as_json(asdict(trial(FOUND)) | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"search": {"seed": [1, 2]}}, "seed: may not vary"),
        ({"search": {"batch_size": [2, 200]}}, "batch_size: may not vary"),
        ({"search": {"dp_epsilon": [1.0, 100.0]}}, "dp_epsilon: may not vary"),
        ({"search": {}}, "names no setting"),
        ({"search": {"momentum": [0.5, 0.5]}}, "each once"),
        ({"search": {"momentum": {"low": 0.5, "high": 0.9, "log": False}}}, "as this package"),
        ({"base": {"rounds": 0}}, "rounds"),
        ({"base": {"speed": 1}}, "speed"),
        ({"search": {"momentum": [n / 100 for n in range(31)]}}, "more than 30 values"),
        ({"search": {"iterations_per_epoch": [100, 500]}}, "outside .search., too"),
        ({"base": asdict(BASE.changed(dp_noise=1.0))}, "--dp-validation withhold"),
        ({"base": asdict(BASE.changed(personal="finetune"))}, "--personal finetune"),
        ({"study_id": ".."}, "study_id"),
        ({"study_id": "a/b"}, "study_id"),
        ({"trials": 10**6}, "trials"),
        ({"hours": 0.0}, "hours"),
    ],
)
def test_terms_vary_only_what_a_tuning_may(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SiteError, match=text):
        StudyTerms.from_json(_as_json(asdict(TERMS) | changes))


def test_a_trial_is_scored_at_its_own_rungs() -> None:
    assert TERMS.scored_after(BASE) == {18, 6}
    assert TERMS.scored_after(FOUND) == {9, 3}
    assert TERMS.most_local_epochs == 2
    TERMS.check_spent(10**6, 10**6)
    limited = replace(TERMS, hours=2.0, gigabytes=1.0)
    limited.check_spent(1.9, 0.9)
    with pytest.raises(SiteError, match="the 2 hours approved for the study are spent"):
        limited.check_spent(2.0, 0.0)
    with pytest.raises(SiteError, match="the 1 gigabytes approved"):
        limited.check_spent(0.0, 1.0)


def test_the_brackets_of_a_study_are_those_begun_and_those_to_come() -> None:
    # 9 to round 2, 3 and the default to 6, 1 and it to 18
    cost = 9 * 2 + 4 * 4 + 2 * 12
    halving = Halving("halving", 3, 3)
    assert [b.cost(18, extra=1) for b in halving.brackets_of(9)] == [cost]
    assert [b.trials for b in halving.brackets_of(20)] == [9, 9, 2]
    # of 3 trials at first, and of 9 later, the second bracket has 6: more than 9 at once take
    begun = [halving.bracket(0, 3)]
    assert [b.trials for b in halving.brackets_of(9, begun)] == [6]
    assert [b.trials for b in Halving("none", 3, 3).brackets_of(2)] == [1, 1]


def test_an_engineer_reads_what_varies_and_what_a_study_costs() -> None:
    said = "\n".join(describe(trial(FOUND, study=replace(TERMS, hours=8.0)), None, []))
    assert "a study of at most 27 trainings, its trials, of 2d, fold 0" in said
    assert "together at most 126 rounds, 8 hours here" in said
    assert "- initial_lr from 0.001 to 0.1 by its logarithm\n- local_epochs of 1, 2\n" in said
    assert "18 rounds of 1 local epoch" in said  # of the first trial, whichever comes next
    assert "at most 200 iterations" in said
    assert "at most 80, each of which counts as an evaluation" in said
    private = BASE.changed(dp_epsilon=8.0, dp_validation="clear")
    costly = replace(TERMS, base=asdict(private))
    said_of_noise = "\n".join(describe(trial(private, 0, study=costly), None, []))
    assert "each of up to 27 trainings, whose costs add up, costs each patient" in said_of_noise
    assert "means of the full validation" not in said


def test_a_begun_trial_goes_on_with_a_larger_budget_and_as_no_other_trial() -> None:
    begun = Run(
        *("Dataset501_A", "2d", 0, "T", "P", "cpu", FOUND, ()),
        remote_sites=("bern",),
        run_id=TERMS.run_id(1),
        study=TERMS,
        trial=1,
    )
    larger = replace(TERMS, trials=54, rounds=252, evaluations=160, hours=9.0)
    assert find_other(replace(begun, study=larger, device="cuda"), begun) is None
    assert Run.from_json(begun.to_json()) == begun
    again = replace(TERMS, study_id="abd")
    assert find_other(replace(begun, study=again), begun) == "study"
    assert find_other(replace(begun, settings=BASE), begun) == "settings"
    assert find_other(replace(begun, trial=2), begun) == "trial"


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, default=asdict)
