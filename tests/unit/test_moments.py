"""What a site tells of its cases' metrics, and what follows for all sites, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.evaluated_model import ModelDescription, Postprocessing
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    Moments,
    MomentsOfLabels,
    SiteEvaluation,
)
from nnunetv2_federated.federation.moments import (
    classes_are_large,
    differences,
    enough_for_quantiles,
    moments,
    moments_of_labels,
    units_of,
)
from nnunetv2_federated.federation.pooled_evaluation import (
    check_answer,
    mean_of_scores,
    pool,
    pool_labels,
    summary_of,
)

NAN = math.nan
EACH = np.arange(4)
"""Four cases of four patients."""


def test_the_variance_is_the_usual_one_where_each_patient_has_one_case() -> None:
    found = moments(np.array([0.2, 0.4, NAN, 0.9]), EACH, 3)

    assert found is not None
    assert (found.cases, found.patients, found.quantiles) == (3, 3, None)
    assert found.mean == pytest.approx(0.5)
    assert found.variance == pytest.approx((0.09 + 0.01 + 0.16) / 2)


def test_the_mean_is_over_cases_and_the_variance_over_patients() -> None:
    # one patient with two cases of 0.3, two with one of 0.6 and one of 0.8: mean 2.0 / 4
    found = moments(np.array([0.3, 0.6, 0.3, 0.8]), np.array([0, 1, 0, 2]), 3)

    assert found is not None
    assert (found.cases, found.patients) == (4, 3)
    assert found.mean == pytest.approx(0.5)
    # deviations -0.4, 0.1 and 0.3, times 3 / 4
    assert found.variance == pytest.approx((0.16 + 0.01 + 0.09) * 9 / 16 / 2)


@pytest.mark.parametrize(
    ("values", "units"), [([0.1, NAN, 0.3], [0, 1, 2]), ([0.1] * 3, [0, 0, 1])]
)
def test_nothing_is_told_of_fewer_patients(values: list[float], units: list[int]) -> None:
    assert moments(np.array(values), np.array(units), 3) is None


@pytest.mark.parametrize(
    ("patients", "quantiles", "enough"),
    [
        (20, [0.25, 0.5, 0.75], True),
        (19, [0.25, 0.5, 0.75], False),
        (10, [0.5], True),
        (9, [0.5], False),
        (99, [0.04], False),
        (40, [0.5, 0.6], False),
    ],
)
def test_five_patients_are_below_above_and_between_quantiles(
    patients: int, quantiles: list[float], *, enough: bool
) -> None:
    assert enough_for_quantiles(patients, quantiles, 5) is enough
    values = np.linspace(0, 1, patients)
    found = moments(values, np.arange(patients), 5, quantiles)
    assert found is not None
    assert (found.quantiles is not None) is enough
    if enough:
        assert found.quantiles == pytest.approx(quantiles)


def test_the_foreground_is_the_mean_of_the_labels_means_of_those_that_are_told() -> None:
    values = {
        "1": {"Dice": np.array([0.2, 0.4, 0.6, 0.8])},
        "2": {"Dice": np.array([0.9, NAN, 0.6, 0.6])},
        "3": {"Dice": np.array([0.1, NAN, NAN, 0.3])},
    }
    found = moments_of_labels(values, EACH, 3)

    assert found.labels["3"]["Dice"] is None
    foreground = found.foreground["Dice"]
    assert foreground is not None
    assert foreground.mean == pytest.approx((0.5 + 0.7) / 2)
    assert (foreground.cases, foreground.patients) == (4, 4)
    # of each patient (deviation / 4 + deviation / 3) / 2, times 4
    parts = [4 / 2 * (a / 4 + b / 3) for a, b in ((-0.3, 0.2), (-0.1, 0), (0.1, -0.1), (0.3, -0.1))]
    assert foreground.variance == pytest.approx(sum(p**2 for p in parts) / 3)


def test_differences_are_left_out_where_they_would_give_one_patient_away() -> None:
    # both sums and the sum of differences of cases 0 to 2 would leave the value of case 3
    first = {"1": {"Dice": np.array([0.5, 0.6, 0.7, 0.9])}}
    second = {"1": {"Dice": np.array([0.4, 0.4, 0.4, NAN])}}

    assert np.isnan(differences(first, second, EACH, 3)["1"]["Dice"]).all()
    second["1"]["Dice"][3] = 0.9
    np.testing.assert_allclose(
        differences(first, second, EACH, 3)["1"]["Dice"], [0.1, 0.2, 0.3, 0.0]
    )


def test_a_class_of_few_patients_has_no_auroc() -> None:
    assert classes_are_large([0, 0, 1, 1], EACH, 2)
    assert not classes_are_large([0, 0, 0, 1], EACH, 2)
    assert not classes_are_large([0, 0, 1, 1], np.array([0, 1, 2, 2]), 2)


def test_sites_are_pooled_by_cases_and_each_is_a_stratum() -> None:
    # standard error: sqrt((3/4)² 0.04 / 4 + (1/4)² 0.09 / 4)
    found = pool([Moments(12, 4, 0.8, 0.04), None, Moments(4, 4, 0.4, 0.09)])

    assert found is not None
    error = math.sqrt(9 / 16 * 0.01 + 0.09 / 64)
    assert found.mean == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - 1.96 * error)
    assert found.high == pytest.approx(0.7 + 1.96 * error)
    assert (found.cases, found.patients, found.sites) == (16, 8, 2)
    assert found.std == pytest.approx(math.sqrt((3 * 0.04 + 3 * 0.09 + 4 * 0.01 + 4 * 0.09) / 7))
    assert pool([None, None]) is None


def test_the_pooled_foreground_is_nnunets() -> None:
    sites = [
        moments_of_labels(
            {"1": {"Dice": np.array(a)}, "2": {"Dice": np.array(b)}}, np.arange(len(a)), 3
        )
        for a, b in (
            ([0.1, 0.2, 0.3], [0.5, 0.7, 0.9]),
            ([0.6, 0.8, 0.8, 1.0], [NAN, 0.1, 0.2, 0.3]),
        )
    ]
    pooled = pool_labels(sites)

    one, two = 3.8 / 7, 2.7 / 6  # over all cases that have a value
    assert summary_of(pooled) == {
        "foreground_mean": {"Dice": pytest.approx((one + two) / 2)},
        "mean": {"1": {"Dice": pytest.approx(one)}, "2": {"Dice": pytest.approx(two)}},
        "metric_per_case": [],
    }


def test_without_a_label_there_is_no_foreground_as_in_nnunet() -> None:
    none = np.array([NAN] * 3)
    told = moments_of_labels(
        {"1": {"Dice": np.array([0.1, 0.2, 0.3])}, "2": {"Dice": none}}, np.arange(3), 3
    )
    assert summary_of(pool_labels([told]))["foreground_mean"] == {"Dice": None}


def test_the_interval_is_as_wide_as_the_bootstraps_of_the_pooled_cases() -> None:
    rng = np.random.default_rng(961)
    told, units, values = [], [], []
    for site, (patients, mean) in enumerate([(60, 0.80), (40, 0.82), (90, 0.78)]):
        of_cases = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
        level = rng.normal(mean, 0.08, patients)
        of_site = np.clip(level[of_cases] + rng.normal(0, 0.03, len(of_cases)), 0, 1)
        told.append(moments(of_site, of_cases, 5))
        units.append(of_cases + 1000 * site)
        values.append(of_site)
    found = pool(told)
    assert found is not None

    all_units, all_values = np.concatenate(units), np.concatenate(values)
    numbers, position = np.unique(all_units, return_inverse=True)
    sums, counts = np.bincount(position, all_values), np.bincount(position)
    interval = bootstrap(
        (np.arange(len(numbers)),),
        lambda drawn, axis: sums[drawn].sum(axis) / counts[drawn].sum(axis),
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval

    assert found.mean == pytest.approx(all_values.mean(), abs=1e-12)
    width = interval.high - interval.low
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert found.low == pytest.approx(interval.low, abs=0.1 * width)


def test_of_differences_too() -> None:
    rng = np.random.default_rng(962)
    told, values = [], []
    for patients in (30, 50):
        truth = rng.normal(0.8, 0.1, patients)
        one, two = (truth + rng.normal(shift, 0.02, patients) for shift in (0.0, 0.01))
        of_models = [{"1": {"Dice": model}} for model in (one, two)]
        paired = differences(of_models[0], of_models[1], np.arange(patients), 5)
        told.append(moments_of_labels(paired, np.arange(patients), 5))
        values.append(one - two)
    found = pool_labels(told).labels["1"]["Dice"]
    assert found is not None
    interval = bootstrap(
        (np.concatenate(values),), np.mean, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip

    assert found.mean == pytest.approx(np.concatenate(values).mean(), abs=1e-12)
    assert found.high - found.low == pytest.approx(interval.high - interval.low, rel=0.1)


HASH = "ab" * 32


def model(**changes: Any) -> ModelDescription:
    content: dict[str, Any] = {
        "plans": {"plans_name": "nnUNetPlans", "configurations": {"2d": {}}},
        "dataset_json": {"channel_names": {"0": "CT"}, "labels": {"background": 0, "one": 1}},
        "configuration": "2d",
        "trainer": "nnUNetTrainer",
        "folds": [0],
        "weights": [HASH],
        "values": 10,
        "network_hash": HASH,
        "mirroring_axes": [0, 1],
        "postprocessing": [Postprocessing(
            "remove_all_but_largest_component_from_segmentation", [1, [1, 2]], 0
        )],
    }  # fmt: skip
    return ModelDescription(**content | changes)


def proposal(**changes: Any) -> EvaluationProposal:
    content: dict[str, Any] = {
        "models": [model()], "subset": "Tr", "metrics": ["Dice"], "min_cases": 3, "quantiles": [],
    }  # fmt: skip
    return EvaluationProposal(**content | changes)


def test_a_proposal_is_the_same_after_its_way_and_every_weight_is_in_its_hash() -> None:
    asked = proposal(models=[model(), model(folds=["all"])])
    assert EvaluationProposal.from_json(asked.to_json()) == asked
    assert asked.approval() == EvaluationProposal.from_json(asked.to_json()).approval()
    others = (
        proposal(models=[model(weights=["cd" * 32])]),
        proposal(models=[model(postprocessing=[])]),
        proposal(min_cases=4),
        proposal(subset="Ts"),
    )
    assert len({other.approval() for other in (*others, proposal())}) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"min_cases": 2},
        {"models": []},
        {"models": [model()] * 3},
        {"metrics": ["Recall"]},
        {"quantiles": [0.5, 0.2]},
        {"quantiles": [0.0]},
        {"subset": "imagesTr"},
        {"models": [model(), model(dataset_json={"classes": {"a": 0}})]},
    ],
)
def test_a_proposal_that_does_not_fit_cannot_be_built(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        proposal(**changes)


MOMENTS = Moments(6, 6, 0.5, 0.01)


def answer(found: Moments | None = MOMENTS, **changes: Any) -> SiteEvaluation:
    of_model = MomentsOfLabels({"1": {"Dice": found}}, {"Dice": found})
    content: dict[str, Any] = {
        "site": "bern", "cases": 6, "patients": 6, "unit": "case", "models": [of_model],
        "difference": None, "scores": [],
    }  # fmt: skip
    return SiteEvaluation(**content | changes)


OFFER = EvaluationOffer("bern", 6, 6, "case")


def test_an_answer_has_to_be_what_was_asked_and_offered() -> None:
    check_answer(answer(), OFFER, proposal(), ["1"])
    check_answer(answer(None), OFFER, proposal(), ["1"])
    few, other = Moments(2, 2, 0.5, 0.01), MomentsOfLabels({"2": {"Dice": None}}, {"Dice": None})
    for bad, words in (
        (answer(cases=7), "cases of its evaluation is 7, offered 6"),
        (answer(site="lyon"), "site of its evaluation is lyon"),
        (answer(unit="patient"), "unit of its evaluation is patient"),
        (answer(few), "tells of 2 patients, at least 3 were agreed"),
        (answer(models=[other]), "other labels or metrics"),
        (answer(models=[]), "other models than were sent"),
        (answer(scores=[{"AUROC": 1.0}]), "other models than were sent"),
    ):
        with pytest.raises(SiteError, match=f"site bern: .*{words}"):
            check_answer(bad, OFFER, proposal(), ["1"])


@pytest.mark.parametrize(
    "found",
    [
        lambda: answer(Moments(7, 6, 0.5, 0.01)),
        lambda: answer(Moments(6, 6, 1.5, 0.01)),
        lambda: answer(Moments(6, 6, -0.1, 0.01)),
        lambda: answer(Moments(6, 6, 0.5, 0.01, [2.0])),
        lambda: Moments(3, 4, 0.5, 0.01),
        lambda: Moments(3, 3, 0.5, -0.01),
        lambda: Moments(3, 3, NAN, 0.01),
    ],
)
def test_impossible_numbers_cannot_be_sent(found: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        found()


def test_the_mean_over_sites_of_a_classifiers_metrics_is_weighted_by_cases() -> None:
    sites = [
        answer(models=[], scores=[{"AUROC": 0.9, "F1": None}], cases=30, patients=30),
        answer(models=[], scores=[{"AUROC": 0.6, "F1": None}], cases=10, patients=10),
        answer(models=[], scores=[None], cases=50, patients=50),
    ]
    assert mean_of_scores(sites, 0) == {"AUROC": pytest.approx(0.825), "F1": None}


def test_patients_are_numbered_by_name() -> None:
    assert units_of(["b", "a", "b"]).tolist() == [1, 0, 1]
