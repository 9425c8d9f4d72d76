"""The report of a comparison, as a reader meets it: a file, without a network."""

from __future__ import annotations

import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from nnunetv2_federated.federation.history import History, RoundRecord, SiteSummary
from nnunetv2_federated.federation.messages import PrivacyTerms
from nnunetv2_federated.federation.privacy_attacks import MembershipTest
from nnunetv2_federated.federation.tested_case import TestedCase
from nnunetv2_federated.nnunet.evaluation.tester import SegmentationTester
from nnunetv2_federated.report.comparison_data import Example, gather, what_left
from nnunetv2_federated.report.html import write_html
from nnunetv2_federated.report.markdown import (
    headline_rows,
    held_back_rows,
    matrix_rows,
    write_markdown,
)
from nnunetv2_federated.report.partition import PALETTE
from nnunetv2_federated.report.plotly_figures import colours, repeats
from nnunetv2_federated.report.statistics import Difference, pairs
from nnunetv2_federated.report.verdict import CAVEAT, UNKNOWN, verdict

ARMS = ["local/bern", "federated/fedavg", "federated/broken", "centralised"]


def history(sites):
    rounds = []
    for index in range(3):
        value = 0.2 * index + 0.3
        own = {site: {"loss": -value, "dice": value} for site in sites}
        rounds.append(
            {
                "round": index, "mean_site_loss": -value, "mean_site_dice": value,
                "sites": own, "bytes_up": 2**21, "bytes_down": 2**21,
                "global_model": {"loss": -value, "dice": value, "sites": own},
                "seconds": {"round": 3.0, "training": 2.0},
                "updates": {
                    site: {"norm": 2.5 + index, "cosine": 0.5, "bound": 4.0, "outcome": outcome}
                    for site in sites
                    for outcome in ("refused" if index == 2 and site == "lyon" else "accepted",)
                },
            }
        )  # fmt: skip
    return History(
        dataset="Dataset901_Balls",
        configuration="2d",
        settings={"rounds": 3},
        sites={site: SiteSummary(5, 0, {"torch": "2"}) for site in sites},
        rounds=tuple(RoundRecord.from_plain(record) for record in rounds),
        versions={"nnunetv2": "2.8.1"},
    )


@pytest.fixture
def data():
    def records(value):
        sites = ("bern", "bern", "lyon", "lyon", "rome", "rome")
        return [
            TestedCase(
                f"c{i}", s, "Tr", None, "", record={"metrics": {"Dice lung": value + i / 100}}
            )
            for i, s in enumerate(sites)
        ]

    square = np.zeros((20, 30), int)
    square[5:15, 10:20] = 1
    picture = np.linspace(0, 1, 600).reshape(20, 30)
    return gather(
        title="Dataset901_<Balls>, 2d",
        arms=ARMS,
        runs={
            "local/bern": {(1, 0): records(0.5)},
            "federated/fedavg": {(1, 0): records(0.7), (2, 0): records(0.8)},
            "centralised": {(1, 0): records(0.75)},
        },
        failures={"federated/broken, seed 1, fold 0": "out of memory"},
        histories={
            ("local/bern", 1, 0): history(["bern"]),
            ("federated/fedavg", 1, 0): history(["bern", "lyon"]),
            ("federated/fedavg", 2, 0): history(["bern", "lyon"]),
        },
        sites=["bern", "lyon"],
        external=["rome"],
        unknown_site="test set",
        counts={"bern": {"lung": 5}, "lyon": {"lung": 3, "background": 1}},
        settings={"seeds": [1, 2]},
        measure=SegmentationTester().measure,
        examples=[Example("c0", "bern", "", picture, square, {"centralised": ("0.9", square)})],
        attacks={
            "federated/fedavg, seed 1, fold 0": MembershipTest(
                members=8, others=4, auc=0.75, low=0.5, high=1.0, p_value=0.107,
                found_at_1=0.25, found_at_10=0.375, calibrated=False, unit="patient",
            )
        },
    )  # fmt: skip


def test_the_tables_name_every_arm_and_why_one_failed(data):
    header, rows = headline_rows(data)
    assert header == ["model", "runs", "Dice", "Dice lung", "failed"]
    assert rows[1] == ["federated/fedavg", "2", "0.7650 ± 0.0707", "0.7650 ± 0.0707", ""]
    assert rows[2] == ["federated/broken", "0", "-", "-", "1: out of memory"]
    header, rows = matrix_rows(data)
    assert header[1:] == [
        "bern, 2 cases", "lyon, 2 cases", "all sites, 4 cases", "rome (external), 2 cases"
    ]  # fmt: skip
    assert rows[2][1:] == ["failed"] * 4


def test_what_a_site_sent_is_its_share_of_every_round(data):
    assert [(s.site, s.rounds, s.mebibytes) for s in what_left(data.histories)] == [
        ("bern", 3, 3.0),
        ("lyon", 3, 3.0),
    ]


def test_sites_whose_updates_were_held_back_are_named(data, tmp_path):
    header, rows = held_back_rows(data)
    assert header == ["federation", "seed", "fold", "site", "outcome", "rounds", "largest norm"]
    assert rows == [
        ["federated/fedavg", "1", "0", "lyon", "refused", "1", "4.5"],
        ["federated/fedavg", "2", "0", "lyon", "refused", "1", "4.5"],
    ]
    page = write_html(data, tmp_path / "report.html").read_text()
    assert 'id="figure-updates"' in page
    assert "<td>refused</td>" in page


def test_models_that_were_attacked_are_named(data, tmp_path):
    row = [
        "federated/fedavg, seed 1, fold 0", "8 patients", "4", "0.750", "0.500 to 1.000", "0.11",
        "25.0%", "37.5%", "no",
    ]  # fmt: skip
    page = write_html(data, tmp_path / "report.html").read_text()
    text = write_markdown(data, tmp_path).read_text()
    assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert f"| {' | '.join(row)} |" in text
    page = write_html(replace(data, attacks={}), tmp_path / "report.html").read_text()
    text = write_markdown(replace(data, attacks={}), tmp_path).read_text()
    assert "Membership inference" not in page + text


def test_what_sites_promised_their_patients_is_a_table(data, tmp_path):
    terms = PrivacyTerms(
        "patient", 30, 0.5, 2.561, 1.0, 60, 0.0237, 2.994, 6.61, 5.871, 8.0, "PLD", "withhold"
    )
    (key, history), *others = data.histories.items()
    summary = replace(next(iter(history.sites.values())), privacy=terms)
    private = replace(history, sites={"hannover": summary})
    told = replace(data, histories={key: private, **dict(others)})
    page = write_html(told, tmp_path / "report.html").read_text()
    text = write_markdown(told, tmp_path).read_text()
    row = (
        f"{key[0]}, seed {key[1]}, fold {key[2]} | hannover | 30 patients | 2.99 | 6.61 | 0.024 | "
        "5.87 of 8 | 2.56 | 1 | 0.5 | 60 | nothing | PLD"
    )
    assert f"| {row} |" in text
    assert "".join(f"<td>{cell}</td>" for cell in row.split(" | ")) in page
    assert "Not covered: plans and fingerprint" in page
    without = write_html(data, tmp_path / "report.html").read_text()
    assert "<h2>Privacy</h2>" not in without + write_markdown(data, tmp_path).read_text()


def test_markdown_links_pictures_that_show_something(data, tmp_path):
    text = write_markdown(data, tmp_path).read_text()
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        assert f"({picture.name})" in text
        assert plt.imread(picture)[..., :3].std() > 0.05


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the test extra")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_the_page_opens_without_a_network_and_its_figures_respond(data, tmp_path, browser):
    path = write_html(data, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto(path.as_uri())
    assert page.locator(".js-plotly-plot .main-svg").first.is_visible()
    assert page.locator(".js-plotly-plot").count() == 8
    assert "<Balls>" in page.title()
    assert page.locator("td.failed").count() == 5
    server = page.locator("#figure-server")
    lines = server.locator(".scatterlayer .trace")
    drawn = lines.count()
    server.locator(".legendtoggle").first.click()
    page.wait_for_function(
        "n => document.querySelectorAll('#figure-server .scatterlayer .trace').length < n",
        arg=drawn,
    )
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_page_fits_a_phone_and_paper(data, tmp_path, browser):
    path = write_html(data, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 375, "height": 700})
    page.goto(path.as_uri())
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.emulate_media(media="print")
    assert len(page.pdf(format="A4")) > 20_000


def test_arms_that_share_a_colour_differ_in_their_markers():
    arms = [f"federated/{number}" for number in range(2 * len(PALETTE) + 1)]
    looks = list(zip(colours(arms).values(), repeats(arms).values(), strict=True))

    assert len(set(looks)) == len(arms)
    assert repeats(arms)["federated/0"] == 0


def difference(second, group, *interval, first="federated/fedavg", cases=18):
    return Difference(first, second, group, "Dice", *interval, cases)


def test_the_verdict_says_no_more_than_the_intervals_do():
    mine = "personal/fedavg/oslo"
    found = [
        difference("local/oslo", "all sites", 0.2, 0.1, 0.3),  # not at home
        difference("local/oslo", "oslo", 0.015, 0.0125, 0.0175),
        difference("local/bern", "bern", -0.01, -0.02, -0.005),
        difference("local/lyon", "lyon", 0.05, -0.1, 0.2),
        difference("local/rome", "rome", 0.5, None, None, cases=1),
        difference("local/oslo", "oslo", -0.001, -0.0025, 0.0005, first=mine),
        difference("federated/fedavg", "oslo", 0.01, 0.005, 0.015, first=mine),
        difference("centralised", "all sites", -0.1, -0.2, -0.05),
    ]
    assert verdict(found) == [
        "federated/fedavg, at home and compared with training alone, of 4 sites: 1 gains, 1 loses, "
        "and for 2 no difference can be seen.",
        "oslo gains: Dice +0.0150 (95 % interval +0.0125 to +0.0175, 18 cases).",
        "bern loses: Dice -0.0100 (95 % interval -0.0200 to -0.0050, 18 cases).",
        "lyon: no difference can be seen: Dice +0.0500 (95 % interval -0.1000 to +0.2000, 18 "
        "cases).",
        "rome: no difference can be seen: Dice +0.5000 on 1 case, without an interval.",
        "personal models of federated/fedavg, at home and compared with training alone, of 1 site: "
        "0 gain, 0 lose, and for 1 no difference can be seen.",
        "oslo: no difference can be seen: Dice -0.0010 (95 % interval -0.0025 to +0.0005, 18 "
        "cases).",
        CAVEAT,
    ]
    assert verdict(found[-1:]) == [UNKNOWN]


def test_the_report_begins_with_the_verdict(data, tmp_path):
    line = "bern: no difference can be seen: Dice"
    text = write_markdown(data, tmp_path).read_text()
    page = write_html(data, tmp_path / "report.html").read_text()
    sentence = "federated/fedavg, at home and compared with training alone, of 1 site"
    assert sentence in page[: page.index("<h2>")]
    assert sentence in text[: text.index("## ")]
    assert (line in text) or ("bern gains: Dice" in text)


def test_personal_models_are_compared_at_home_and_the_ensemble_everywhere():
    arms = [
        *("local/a/b", "local/c", "ensemble", "federated/x", "personal/x/a/b", "personal/x/c"),
    ]
    assert pairs(arms, ["a/b"]) == [
        (("federated/x", "local/a/b"), "all sites"),
        (("federated/x", "local/a/b"), "a/b"),
        (("federated/x", "local/c"), "all sites"),
        (("federated/x", "ensemble"), "all sites"),
        (("personal/x/a/b", "federated/x"), "a/b"),
        (("personal/x/a/b", "local/a/b"), "a/b"),
    ]
