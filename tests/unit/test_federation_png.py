from __future__ import annotations

import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from nnunetv2_federated.federation.history import History, RoundRecord, read_history
from nnunetv2_federated.report import federation_png


def plot_federation(rounds, path):
    federation_png.plot_federation([RoundRecord.from_plain(record) for record in rounds], path)


def summary(value, sites):
    return {"loss": -value, "dice": value, "sites": {s: {"loss": -v, "dice": v} for s, v in sites}}


def make_round(index, *, names=("bern", "lyon", "oslo"), validated=True):
    value = 0.1 * index
    sites = [(name, value + 0.02 * i) for i, name in enumerate(names)]
    record = {"round": index, **summary(value, sites), "mean_site_loss": -value}
    record["mean_site_dice"] = value
    record["global_model"] = summary(value, sites) if validated else None
    return record


ROUNDS = [make_round(0, validated=False), make_round(1), make_round(2), make_round(3)]
SAMPLED = [make_round(0, names=("bern",)), make_round(1, names=("lyon", "oslo"))]
UNKNOWN = [make_round(0), {**make_round(1), "dice": math.nan, "mean_site_loss": None}]


@pytest.mark.parametrize(
    "rounds",
    [
        ROUNDS,
        SAMPLED,
        UNKNOWN,
        ROUNDS[:1],
        [make_round(0, names=[f"site_{i:02d}" for i in range(12)])],
    ],
    ids=["last round not validated", "sampled sites", "no value", "one round", "many sites"],
)
def test_curves_are_drawn(tmp_path, rounds):
    path = tmp_path / "federation.png"
    plot_federation(rounds, path)
    picture = plt.imread(path)
    assert picture.shape[:2] == (770, 1210)
    # something other than white in each quarter
    for rows in (slice(0, 385), slice(385, None)):
        for columns in (slice(0, 605), slice(605, None)):
            assert picture[rows, columns, :3].min() < 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["federation.png"]


def with_updates(index, outcome):
    update = {"norm": 10.0**index, "cosine": -0.5 if index else None, "bound": 5.0}
    accepted = {**update, "outcome": "accepted"}
    updates = {"bern": accepted, "lyon": accepted, "_refused$": {**update, "outcome": outcome}}
    return {**make_round(index), "updates": updates}


def test_updates_have_panels_of_their_own(tmp_path):
    """Also those of a site that was refused, which has no other line."""
    pictures = []
    for outcome in ("refused", "accepted"):
        path = tmp_path / f"{outcome}.png"
        plot_federation([make_round(0), *(with_updates(i, outcome) for i in (1, 2))], path)
        pictures.append(plt.imread(path)[..., :3])
    assert pictures[0].shape[:2] == (1155, 1210)
    for columns in (slice(0, 605), slice(605, None)):
        assert pictures[0][770:, columns].min() < 0.5
    assert (pictures[0][770:, :605] != pictures[1][770:, :605]).any()


def test_drawn_anew_from_its_file_it_is_the_same_picture(tmp_path):
    rounds = [*ROUNDS, {**with_updates(4, "clipped"), "mean_site_dice": math.nan}]
    plot_federation(rounds, tmp_path / "a.png")
    records = tuple(RoundRecord.from_plain(record) for record in rounds)
    History("D", "2d", {"rounds": 5}, {}, records).write(tmp_path / "federation.json")
    federation_png.plot_federation(read_history(tmp_path).rounds, tmp_path / "b.png")
    np.testing.assert_array_equal(plt.imread(tmp_path / "a.png"), plt.imread(tmp_path / "b.png"))


def test_fonts_of_nnunets_plot_neither_come_in_nor_are_reset(tmp_path):
    """nnU-Net's progress plot sets seaborn's large fonts for the whole process."""
    plot_federation(ROUNDS, tmp_path / "a.png")
    with mpl.rc_context({"font.size": 30, "axes.titlesize": 40, "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        plot_federation(ROUNDS, tmp_path / "b.png")
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_figure_stays_open(tmp_path):
    before = plt.get_fignums()
    plot_federation(ROUNDS, tmp_path / "federation.png")
    assert plt.get_fignums() == before
