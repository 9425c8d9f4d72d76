"""What another machine calls itself, or gives as a reason, is shown and does nothing, anywhere."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from markdown_it import MarkdownIt
from pydantic import TypeAdapter

from nnunetv2_federated.cli import status
from nnunetv2_federated.cli.console import ConsoleObserver, say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.federation.errors import RoundError
from nnunetv2_federated.federation.history import History, RoundRecord
from nnunetv2_federated.federation.logs import send_logs_to
from nnunetv2_federated.federation.messages import SiteDescription
from nnunetv2_federated.federation.tested_case import TestedCase
from nnunetv2_federated.report.comparison_data import ComparisonData, Example, gather
from nnunetv2_federated.report.federation_png import plot_federation
from nnunetv2_federated.report.html import write_html
from nnunetv2_federated.report.markdown import write_markdown
from nnunetv2_federated.report.partition import partition_table, plot_partition
from nnunetv2_federated.report.plotly_figures import all_figures
from nnunetv2_federated.report.verdict import verdict

HOSTILE = [
    "[/x]",
    "[red]a[/red] [link=https://evil.example]b[/link] :warning:",
    "<script>alert(1)</script>",
    "<a href='https://evil.example'>a</a><b>b</b>",
    "</script><img src=x onerror=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "![a](https://evil.example/x.png) [b](https://evil.example) <https://evil.example>",
    "a | b |\n| --- |\n# c",
    "`a` *b* __c__ ~~d~~",
    "$\\frac{",
    "$x^2$ \\$",
    "_hidden",
    "=cmd()",
    "a\nround 99/99  lr 0\r\nb",
    "a\x1b[2J\x1b]0;b\x07\x9b31m",
    "a\u202eb\u2028c\u0085d",
    "a\ud800b",
    "{{ 7 * 7 }} %s %(name)s %{x} {0}",
    "x" * 10**6,
]


def controls(text: str) -> set[str]:
    """Characters that move, hide or reorder; a line break ends a line."""
    return {c for c in text if unicodedata.category(c)[0] == "C" and c != "\n"}


# The terminal


def test_the_table_of_sites_shows_what_they_call_themselves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sites = []
    for text in HOSTILE:
        site = SiteDescription("bern", 5, 2, "m", "p", free_gb=81.2)
        # past the border, which lets no such text in
        for name, value in (("site", text), ("versions", {text: text, "torch": "2.9"})):
            object.__setattr__(site, name, value)
        object.__setattr__(site, "device", text)
        sites.append(site)
    with ConsoleObserver(3) as console:
        for site in sites:
            console.sites_joined([site])
        console.sites_joined(sites[:2])
    shown = capsys.readouterr().out
    assert "[/x]" in shown
    assert ":warning:" in "".join(shown.split())
    assert controls(shown) == set()


def test_a_line_at_the_terminal_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleObserver(3) as console:
        for text in HOSTILE:
            record = {"round": 0, "failed": {text: text}, "seconds": {"round": 1.0}, "updates": {}}
            numbers = dict.fromkeys(("lr", "train_loss", "loss", "dice"), 0.5)
            console.round_finished(RoundRecord.from_plain(record | numbers))
            console.say(f"{text}: {text}")
            say(f"{text}: {text}")
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3 * len(HOSTILE) + 1
    assert lines[0] == (
        "round 1/3  lr 0.50000  train loss +0.5000  validation loss +0.5000  Dice 0.5000  1.0 s"
        "  failed: [/x]"
    )
    assert lines[1:3] == ["[/x]: [/x]"] * 2
    assert max(map(len, lines)) <= 4000
    assert controls("".join(lines)) == set()


def test_the_bar_of_a_site_reads_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with ConsoleObserver(3) as console:
        for text in HOSTILE:
            console.site_started(text, 5)
            console.iteration_done()
            console._bars.refresh()
    shown = capsys.readouterr().out
    assert "[/x]" in shown
    assert "\x1b]0;b" not in shown


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for text in HOSTILE:

        def fail(text: str = text) -> None:
            raise RoundError(f"0 of 1 sites take part. bern: {text}")

        with pytest.raises(SystemExit):
            run_command(fail)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == len(HOSTILE) + 1
    assert lines[0] == "error: 0 of 1 sites take part. bern: [/x]"
    assert controls("".join(lines)) == set()


# federation.json, of this machine or another


def history(names: list[str]) -> dict[str, Any]:
    rounds = []
    for index in range(2):
        value = 0.2 * index + 0.3
        own = {name: {"loss": -value, "dice": value} for name in names}
        rounds.append(
            {
                "round": index, "mean_site_loss": -value, "mean_site_dice": value, "sites": own,
                "loss": -value, "dice": value, "bytes_up": 2**21, "bytes_down": 2**21,
                "global_model": {"loss": -value, "dice": value, "sites": own},
                "seconds": {"round": 3.0, "training": 2.0}, "started": 1.7e9 + index,
                "failed": {name: name for name in names},
            }
        )  # fmt: skip
    sites = {name: {"training_cases": 5, "versions": {name: name}} for name in names}
    return {
        "dataset": names[0], "configuration": names[0], "settings": {"rounds": 2},
        "rounds": rounds, "sites": sites, "versions": {name: name for name in names},
    }  # fmt: skip


def read(content: dict[str, Any]) -> History:
    return TypeAdapter(History).validate_python(content)


def test_the_status_shows_what_the_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "federation.json").write_text(json.dumps(history(HOSTILE)))
    status.main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "[/x]" in shown
    assert controls(shown) == set()
    assert len(shown) < 300 * 1000  # a megabyte is cut


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": None},
        {"rounds": [5]},
        {"rounds": [{"round": 10**400}]},
        {"rounds": {"a": 1}},
        {"sites": []},
        {"sites": {"[/x]\n\x1b": {"training_cases": "5"}}},
        {"sites": {"bern": {"training_cases": 1e400}}},
        {"settings": "none"},
        {"dataset": 5},
    ],
)
def test_a_status_that_is_none_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    (tmp_path / "federation.json").write_text(json.dumps(history(["bern"]) | change))
    with pytest.raises(SystemExit) as end:
        status.main([str(tmp_path)])
    shown = capsys.readouterr()
    assert end.value.code == 2
    assert "give the fold_X folder of a federation" in shown.err
    assert shown.err.count("\n") == 1
    assert controls(shown.err) == set()


@pytest.mark.parametrize("text", ["", "[" * 100_000, "5", "\x00", '{"a": 1' + "0" * 5000 + "}"])
def test_a_file_that_is_no_json_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "federation.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        status.main([str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# Logs


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    loggers = [logging.getLogger(name) for name in ("flwr", "nnunetv2_federated")]
    before = [(one.handlers[:], one.propagate, one.level) for one in loggers]
    send_logs_to(tmp_path / "site.log")
    yield tmp_path / "site.log"
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


def fail(text: str) -> None:
    raise ValueError(text)


def test_nobody_writes_a_record_of_their_own_into_a_log(log: Path) -> None:
    forged = "\n2026-01-01 00:00:00,000 INFO nnunetv2_federated: approved"
    logger = logging.getLogger("nnunetv2_federated.site")
    texts = [text + forged for text in HOSTILE if text.isprintable() or "\n" in text]
    for text in texts:
        logger.info("refused: %s", text)
        try:
            fail(text + forged.replace("\n", "\r\u2028\x1b[2K"))
        except ValueError:
            logger.exception("failed: %s", text)

    lines = log.read_text("utf-8").split("\n")
    records = [line for line in lines if re.match(r"\d{4}-", line)]
    assert len(records) == 2 * len(texts)
    assert all("refused: " in line or "failed: " in line for line in records)
    assert all(line.startswith("    ") for line in set(lines) - set(records) - {""})
    assert controls("".join(lines)) == set()
    assert any(line.startswith("    ValueError: [/x]") for line in lines)


def test_a_traceback_is_kept_and_a_flood_is_cut(log: Path) -> None:
    try:
        fail("a\n" * 10**5)
    except ValueError:
        logging.getLogger("nnunetv2_federated.site").exception("failed")
    text = log.read_text()
    assert "test_text_from_others.py" in text
    assert len(text.splitlines()) < 250


# Pictures, pages and tables


def data_of(names: list[str]) -> ComparisonData:
    """Everything in it that is a text is one of these names."""
    arms = [*(f"local/{name}" for name in names), f"federated/{names[0]}", "centralised"]
    records = [
        TestedCase(f"{name} {i}", name, "Tr", None, name, record={"value": 0.5 + i / 10})
        for name in names
        for i in range(2)
    ]

    def measure(found: list[dict[str, Any]], wanted: tuple[str, ...] | None) -> dict[str, float]:
        return {name: float(np.mean([r["value"] for r in found])) for name in wanted or names[:2]}

    square = np.zeros((20, 30), int)
    square[5:15, 10:20] = 1
    picture = np.linspace(0, 1, 600).reshape(20, 30)
    shown = dict.fromkeys(names, ("0.9", square))
    return gather(
        title=names[0],
        arms=arms,
        runs={arm: {(1, 0): records} for arm in (arms[0], *arms[-2:])},
        failures={f"{arm}, seed 1, fold 0": name for arm, name in zip(arms, names, strict=False)},
        histories={(arm, 1, 0): read(history(names)) for arm in arms},
        sites=names[:-1],
        external=names[-1:],
        unknown_site="test set",
        counts={name: dict.fromkeys(names, 1) for name in names},
        settings={name: name for name in names},
        measure=measure,
        examples=[Example(name, name, name, picture, square, shown) for name in names[:1]],
    )


@pytest.fixture(scope="module")
def hostile() -> ComparisonData:
    return data_of(HOSTILE)


class Tags(HTMLParser):
    """What a browser would make elements of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def tags(text: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Tags()
    parser.feed(text)
    return parser.found


def test_no_tag_of_others_gets_into_the_page(hostile: ComparisonData, tmp_path: Path) -> None:
    plain = data_of([f"site {i}" for i in range(len(HOSTILE))])

    text = write_html(hostile, tmp_path / "a.html").read_text("utf-8")

    assert tags(text) == tags(write_html(plain, tmp_path / "b.html").read_text("utf-8"))
    assert "[/x]" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "x" * 5000 not in text
    assert controls(text.replace("\t", "")) <= controls(_page_of_plotly())


def _page_of_plotly() -> str:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    return str(get_plotlyjs())


def test_no_tag_of_others_gets_into_a_figure(hostile: ComparisonData) -> None:
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, item in value.items():
                if key != "template":
                    yield from texts(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from texts(item)

    figures = all_figures(hostile)
    assert len(figures) == 7
    found = [text for figure in figures.values() for text in texts(figure.to_plotly_json())]
    assert "[/x]" in found
    assert [text for text in found if re.search(r"<\s*/?\s*[a-zA-Z]", text)] == []
    assert controls("".join(found)) == set()
    assert max(map(len, found)) < 1000


def test_nothing_of_others_acts_in_the_markdown(hostile: ComparisonData, tmp_path: Path) -> None:
    text = write_markdown(hostile, tmp_path).read_text("utf-8")

    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)

    kinds = {tag for tag, _ in tags(page)}
    assert kinds <= {
        "h1", "h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td",
        "pre", "code", "img",
    }  # fmt: skip
    assert page.count("<li>") == len(verdict(hostile.differences))
    assert [src for src in re.findall(r'src="([^"]*)"', page) if not src.endswith(".png")] == []
    assert page.count("<img") == len(list(tmp_path.glob("*.png")))  # the report's own
    assert page.count("<code") == 1  # the settings
    assert page.count("<table") == 4
    assert "[/x]" in page
    assert controls(text) == set()


def test_pictures_are_drawn_whatever_the_names(tmp_path: Path) -> None:
    for number in range(0, len(HOSTILE), 7):  # a legend names up to ten sites
        names = HOSTILE[number : number + 7]
        plot_federation(read(history(names)).rounds, tmp_path / f"curves_{number}.png")
        counts = {name: dict.fromkeys(names, 2) for name in names}
        plot_partition(counts, tmp_path / f"partition_{number}.png", names[0])
    pictures = sorted(tmp_path.iterdir())
    assert len(pictures) == 6
    for picture in pictures:
        assert plt.imread(picture)[..., :3].std() > 0.05


def test_the_table_of_a_partition_has_a_line_for_each_site() -> None:
    table = partition_table({name: dict.fromkeys(HOSTILE, 2) for name in HOSTILE})
    assert len(table.split("\n")) == len(HOSTILE) + 4
    assert controls(table) == set()
