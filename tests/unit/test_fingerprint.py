"""Fingerprints of sites: pooled exactly, in any order, and without a patient in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_federated.federation.agreement import check_agreement, check_names, hash_plans
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    Moments,
    MomentsOfLabels,
    SiteEvaluation,
    WeightsReceipt,
)
from nnunetv2_federated.federation.fingerprint import (
    CaseFingerprint,
    SiteFingerprint,
    nnunet_fingerprint,
    pool_fingerprints,
    samples_per_case,
    summarise_cases,
)
from nnunetv2_federated.federation.intensities import (
    MAX_BINS,
    Channel,
    nnunet_properties,
    pool_channels,
)
from nnunetv2_federated.federation.messages import (
    FullValidation,
    PersonalReport,
    PrepareReport,
    PrivacyTerms,
    SiteDescription,
    SiteSurvey,
    TrainReport,
    Validation,
)


def case(
    values: list[float] | np.ndarray,
    spacing: tuple[float, ...] = (3.0, 1.0, 1.0),
    size: tuple[int, ...] = (10, 20, 30),
    relative_size: float = 1.0,
) -> CaseFingerprint:
    channel = Channel.of(np.asarray(values, np.float32)) if len(values) else None
    return CaseFingerprint(spacing, size, relative_size, (channel,))


def test_pooling_by_hand() -> None:
    # all five: sum 35, mean 7; deviations -6 -5 -4 3 12: squares 36+25+16+9+144 = 230
    pooled = pool_channels([Channel.of(np.array([1, 2, 3.0])), Channel.of(np.array([10, 19.0]))])

    assert nnunet_properties(pooled) == pytest.approx(
        {
            "mean": 7.0,
            "std": math.sqrt(46),
            "median": 3.0,
            "min": 1.0,
            "max": 19.0,
            "percentile_00_5": 1.02,  # 0.5 % of the way over 4 steps: 1 + 0.02 * (2 - 1)
            "percentile_99_5": 18.82,  # 19 - 0.02 * 9
        }
    )


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "CT": lambda rng: rng.normal(50, 200, 3000).round().clip(-1024, 3071),
    "X-ray": lambda rng: rng.integers(0, 256, 2000).astype(float),
    "MR": lambda rng: rng.gamma(2, 300, 2500),
    "far from 0": lambda rng: 1e5 + rng.normal(0, 1, 2000),
    "small": lambda rng: rng.uniform(-1e-4, 1e-4, 2000),
    "heavy tail": lambda rng: rng.lognormal(0, 3, 3000),
    "constant": lambda rng: np.full(rng.integers(2, 50), 7.25),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_pooled_statistics_are_those_of_the_pooled_voxels(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    voxels = [
        (DISTRIBUTIONS[name](rng) * (1 + site)).astype(np.float32)
        for site in range(3)
        for _ in range(4)
    ]
    cases = [[case(v) for v in voxels[4 * i : 4 * i + 4]] for i in range(3)]
    sites = [summarise_cases(str(i), of_site) for i, of_site in enumerate(cases)]
    sites = [SiteFingerprint.from_json(site.to_json()) for site in sites]

    pooled = pool_fingerprints(sites).channels[0]

    all_voxels = np.concatenate(voxels).astype(np.float64)
    ours = nnunet_properties(pooled)
    assert ours["mean"] == pytest.approx(all_voxels.mean(), rel=1e-6)
    assert ours["std"] == pytest.approx(all_voxels.std(), rel=1e-6, abs=1e-12)
    assert (ours["min"], ours["max"]) == (all_voxels.min(), all_voxels.max())
    low, median, high = np.percentile(all_voxels, (0.5, 50.0, 99.5))
    half_bin = 2.0**pooled.exponent / 2
    assert ours["percentile_00_5"] == pytest.approx(low, abs=half_bin)
    assert ours["median"] == pytest.approx(median, abs=half_bin)
    assert ours["percentile_99_5"] == pytest.approx(high, abs=half_bin)
    finest_float32 = abs(all_voxels).max() * 2.0**-23
    assert half_bin <= max(0.5, np.ptp(all_voxels) / MAX_BINS, finest_float32)
    assert all(
        nnunet_properties(pool_fingerprints(order).channels[0]) == ours
        for order in ([sites[2], sites[0], sites[1]], sites[::-1])
    )


def test_whole_numbers_keep_exact_percentiles() -> None:
    voxels = np.random.default_rng(0).integers(-1000, 3000, 10_001).astype(np.float32)

    ours = nnunet_properties(pool_channels([Channel.of(voxels[:4000]), Channel.of(voxels[4000:])]))

    low, median, high = np.percentile(voxels.astype(np.float64), (0.5, 50.0, 99.5))
    assert ours["percentile_00_5"] == pytest.approx(low, abs=1e-9)
    assert ours["median"] == median
    assert ours["percentile_99_5"] == pytest.approx(high, abs=1e-9)


@pytest.mark.parametrize(("min_cases", "bins"), [(None, 3500), (2, 500)])
def test_cases_of_differing_ranges_fit_into_the_bins(min_cases: int | None, bins: int) -> None:
    """Each case alone has a bin for every whole number; together they need 7,000.

    In bins of two, both cases are in the 500 from 3000 to 4000; what one alone has joins these.
    """
    cases = [case(np.arange(low, low + 4000)) for low in (0, 3000)]

    told = SiteFingerprint.from_json(summarise_cases("a", cases, min_cases).to_json())

    channel = told.channels[0]
    assert (channel.exponent, channel.counts.size) == (1, bins)
    assert nnunet_properties(channel)["median"] == pytest.approx(3499.5, abs=1)


def test_the_axes_of_a_case_are_not_linked() -> None:
    """Which case has which size on which axis makes no difference to what leaves the site."""
    cases = [case([i], (1.0 + i, 2.0 + i, 3.0), (i + 1, 2 * i + 1, 9 - i)) for i in range(6)]
    rng = np.random.default_rng(0)
    columns = [
        [(c.spacing[axis], c.size[axis]) for c in np.array(cases, object)[rng.permutation(6)]]
        for axis in range(3)
    ]
    shuffled = [
        replace(c, spacing=tuple(p[0] for p in row), size=tuple(p[1] for p in row))
        for c, row in zip(cases, zip(*columns, strict=True), strict=True)
    ]
    assert shuffled != cases

    assert summarise_cases("a", shuffled).to_json() == summarise_cases("a", cases).to_json()


def test_the_relative_size_does_not_tell_three_sizes() -> None:
    sites = summarise_cases("a", [case([1], relative_size=37 * 41 * 43 / 100_000)])

    assert sites.relative_sizes == ((83 / 128, 1),)  # 0.652 * 128 = 83.5, rounded down


def test_binned_fingerprints_hold_enough_cases_in_every_bin() -> None:
    rng = np.random.default_rng(1)
    cases = [
        case(rng.normal(100 * i, 50, 500), (1 + i / 10, 1, 1), (20 + i, 50, 50), 0.5 + i / 40)
        for i in range(17)
    ]

    site = summarise_cases("a", cases, min_cases=5)

    channel = site.channels[0]
    width = 2.0**channel.exponent
    for first, last in zip(channel.first, channel.last, strict=True):
        holding = [
            c
            for c in cases
            if (own := c.channels[0])
            and np.any(
                (own.values >= first * width - 2.0**own.exponent)
                & (own.values <= (last + 1) * width + 2.0**own.exponent)
            )
        ]
        assert len(holding) >= 5
    assert all(row[-1] >= 5 for axis in site.axes for row in axis)
    assert all(n >= 5 for _, n in site.relative_sizes)
    lowest = min(c.channels[0].min for c in cases if c.channels[0])
    assert channel.min < lowest  # no patient's minimum
    assert channel.count == 17 * 500


def test_a_site_below_the_minimum_tells_one_bin() -> None:
    site = summarise_cases("a", [case([0, 5], size=(9, 9, 9)), case([9.5], size=(11, 9, 9))], 5)

    assert site.channels[0].counts.tolist() == [3]
    assert site.axes[0] == ((3.0, 10, 2),)


def test_a_case_without_foreground_is_counted_but_adds_no_voxel() -> None:
    site = summarise_cases("a", [case([1, 3]), case([])])

    assert site.cases == 2
    assert site.channels[0].count == 2


def test_a_site_without_foreground_adds_its_cases_and_no_intensities() -> None:
    ill = summarise_cases("a", [case([1, 3], (3, 1, 1), (10, 30, 20))])
    healthy = summarise_cases("b", [case([], (5, 1, 1), (8, 10, 40)), case([], (5, 1, 1))])
    told = SiteFingerprint.from_json(healthy.to_json())
    assert told == healthy

    content = nnunet_fingerprint(pool_fingerprints([told, ill]))

    intensities = content["foreground_intensity_properties_per_channel"]["0"]
    assert (intensities["mean"], intensities["min"], intensities["max"]) == (2, 1, 3)
    assert [row[0] for row in content["spacings"]] == [3, 5, 5]
    alone = pool_fingerprints([healthy])  # as the server looks at each
    assert (alone.cases, alone.channels) == (2, (None,))


def test_foreground_nowhere_cannot_be_planned_for() -> None:
    healthy = summarise_cases("a", [case([]), case([])], min_cases=2)

    with pytest.raises(SiteError, match="no training case of any site has foreground"):
        nnunet_fingerprint(pool_fingerprints([healthy, healthy]))


def test_the_planners_fingerprint_by_hand() -> None:
    one = summarise_cases("a", [case([1], (3, 1, 1), (10, 30, 20), 0.5)])
    two = summarise_cases("b", [case([2], (5, 1, 1), (8, 10, 40), 1.0), case([2])])

    content = nnunet_fingerprint(pool_fingerprints([one, two]))

    # axes sorted one by one, by spacing, then size; the rows are no cases
    assert content["spacings"] == [[3, 1, 1], [3, 1, 1], [5, 1, 1]]
    assert content["shapes_after_crop"] == [[10, 10, 20], [10, 20, 30], [8, 30, 40]]
    assert content["median_relative_size_after_cropping"] == 1.0


def test_samples_follow_nnunet() -> None:
    assert samples_per_case(300) == 333_333  # 10e7 // 300


BROKEN: dict[str, Callable[[dict], object]] = {
    "missing": lambda f: f.pop("cases"),
    "unknown": lambda f: f.update(patients=["x"]),
    "no site": lambda f: f.update(site=3),
    "counts do not add up": lambda f: f.update(cases=3),
    "two axes": lambda f: f["axes"].pop(),
    "negative size": lambda f: f["axes"][0][0].__setitem__(1, -4),
    "text": lambda f: f["axes"][0][0].__setitem__(0, "3"),
    "short row": lambda f: f["relative_sizes"][0].pop(),
    "no channel": lambda f: f.update(channels=[]),
    "half without foreground": lambda f: f["channels"].append(None),
    "NaN": lambda f: f["channels"][0].update(sum=math.nan),
    "histogram": lambda f: f["channels"][0]["counts"].__setitem__(0, 5),
    "reversed bin": lambda f: f["channels"][0]["last"].__setitem__(0, -5),
    "float counts": lambda f: f["channels"][0]["counts"].__setitem__(0, 1.0),
    "range": lambda f: f["channels"][0].update(min=99),
    "huge exponent": lambda f: f["channels"][0].update(exponent=10**9),
    "lengths": lambda f: f["channels"][0]["first"].append(4),
}


@pytest.mark.parametrize("break_", BROKEN.values(), ids=BROKEN)
def test_a_broken_fingerprint_is_refused(break_: Callable[[dict], object]) -> None:
    content = json.loads(summarise_cases("a", [case([1, 3]), case([2])]).to_json())
    SiteFingerprint.from_json(json.dumps(content))
    break_(content)

    with pytest.raises(SiteError, match="not a valid SiteFingerprint"):
        SiteFingerprint.from_json(json.dumps(content))


SURVEY = SiteSurvey(
    "a", 3, {"0": "CT"}, {"background": 0, "one": 1}, None, ".nii.gz", "SimpleITKIO", "mm", "2.8.1"
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", {"background": 0, "two": 1}),
        ("channel_names", {"0": "MR"}),
        ("file_ending", ".png"),
        ("spacing_unit", "pixel"),
        ("nnunetv2", "2.8.0"),
    ],
)
def test_sites_that_differ_are_named(field: str, value: object) -> None:
    with pytest.raises(SiteError, match=f"site b: {field} is .* at site a"):
        check_agreement([SURVEY, replace(SURVEY, site="b", cases=9, **{field: value})])


def test_plans_are_the_same_whatever_the_dataset_is_called() -> None:
    plans = {"dataset_name": "Dataset001_A", "plans_name": "nnUNetPlans"}

    assert hash_plans(plans) == hash_plans({**plans, "dataset_name": "Dataset002_B"})
    assert hash_plans(plans) != hash_plans({**plans, "plans_name": "other"})


@pytest.mark.parametrize("name", ["../nnUNetPlans", "/etc", "a/b", "", "..", None, 3])
def test_plans_cannot_name_another_folder(name: object) -> None:
    good = {"plans_name": "nnUNetPlans", "configurations": {"2d": {"data_identifier": "a_2d"}}}
    check_names(good, "a")

    for bad in (
        {**good, "plans_name": name},
        {**good, "configurations": {"2d": {"data_identifier": name}}},
    ):
        with pytest.raises(SiteError, match=r"site a: .* cannot be a name of plans"):
            check_names(bad, "a")


def test_the_page_lists_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "what-leaves-a-site.md").read_text()
    sent = (SiteSurvey, SiteFingerprint, Channel, PrepareReport, SiteDescription, PrivacyTerms)

    evaluated = (EvaluationOffer, WeightsReceipt, SiteEvaluation, MomentsOfLabels, Moments)

    for message in (*sent, TrainReport, Validation, FullValidation, PersonalReport, *evaluated):
        for field in fields(message):
            assert f"`{field.name}`" in page, f"{message.__name__}.{field.name}"
