"""``nnUNetv2_federated_audit``: what a site was asked, what it agreed to, and what left it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar

from rich.console import Console

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import as_table, say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.federation.audit import AUDIT_FILE, EVENTS
from nnunetv2_federated.federation.chain import Line, Report, Value, check, read
from nnunetv2_federated.federation.choice import Choice, Choices, Texts, record
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.files import replacing
from nnunetv2_federated.federation.logs import LONGEST_LINE
from nnunetv2_federated.federation.text import csv_cell
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file

_SHORTEST_HEAD, _HASH_LENGTH = 16, 64
_FIRST_FIELDS = (
    *("message", "run", "round", "sequence", "bytes", "sha256", "by", "what", "how", "reason"),
)


DESCRIPTION = """Check a site's audit log and show it: what was asked, what was agreed to, and what
left. Exit status 1 if the log was changed."""


@record
class AuditChoices(Choices):
    """Choices of ``nnUNetv2_federated_audit``."""

    group: ClassVar[str] = "audit log"

    site: Annotated[
        Path,
        Choice(
            "file of the site, as for nnUNetv2_federated_site --site", "site.toml", positional=True
        ),
    ]
    csv: Annotated[
        Path | None,
        Choice("write a table to this file, print none", "FILE", unset="print it"),
    ] = None
    since: Annotated[
        str | None,
        Choice(
            "only lines of this time and later: 2026-03-01, or 2026-03-01T08:00 (UTC)",
            "DATE",
            unset="all",
        ),
    ] = None
    event: Annotated[
        Texts, Choice(f"only these events: {', '.join(EVENTS)}", "NAME", unset="all")
    ] = ()
    head: Annotated[
        str | None,
        Choice(
            f"look for a head that was noted earlier; at least {_SHORTEST_HEAD} of its digits",
            "HASH",
            unset="none",
        ),
    ] = None


def command() -> Command[AuditChoices]:
    """Return the command line."""
    parser = build_parser(AuditChoices, "nnUNetv2_federated_audit", DESCRIPTION)
    return Command(AuditChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _audit(command().parse(argv)))


@dataclass(frozen=True)
class _Selection:
    """Which lines of a log are shown."""

    since: datetime | None
    events: frozenset[str]
    """Names of events; all if empty."""

    def period(self, lines: Iterable[Line]) -> list[Line]:
        """Return the lines of the period, whatever their event."""
        return [line for line in lines if self.since is None or line.moment >= self.since]

    def shown(self, period: Iterable[Line]) -> list[Line]:
        """Return the lines of the events that were asked for."""
        return [line for line in period if not self.events or line.event in self.events]


def _audit(choices: AuditChoices) -> None:
    selection = _Selection(_since(choices.since), _events(choices.event))
    noted = _noted(choices.head)
    path = read_site_file(choices.site).work / AUDIT_FILE
    report = _checked(path)
    period = selection.period(_whole(path, report))
    _show(selection.shown(period), choices.csv)
    say(what_left(period))
    if report.note:
        say(f"a process was interrupted: {report.note}")
    say(f"the chain holds: {report.lines} lines, head {report.sha256}")
    if noted:
        _find(noted, path, report)


def _checked(path: Path) -> Report:
    report = check(path)
    if report.problem:
        raise FederationError(f"audit log {path} was changed or damaged: {report.problem}.")
    if not report.lines:
        raise SettingsError(f"{path} has no line: the site has not run with this site.toml yet.")
    return report


def _show(lines: Sequence[Line], table: Path | None) -> None:
    """Write the lines to a CSV file, or print them as a table if there is none."""
    if table is not None:
        _write_csv(lines, table)
        say(f"wrote {len(lines)} lines to {table}")
        return
    rows = [(str(line.number), _time(line), line.event, _told(line)) for line in lines]
    columns = ("line", "time (UTC)", "event", "what")
    Console(highlight=False).print(as_table("", columns, rows, LONGEST_LINE))


def _whole(path: Path, report: Report) -> Iterable[Line]:
    """Yield the lines that were checked, without those a running site has appended since."""
    return (line for line in read(path) if line.number <= report.lines)


def what_left(lines: Sequence[Line]) -> str:
    """Say in words what left the site in a period.

    Parameters
    ----------
    lines
        All lines of the period, whatever their event.
    """
    if not lines:
        return "nothing was recorded in this period"
    period = f"from {_time(lines[0])} to {_time(lines[-1])} (UTC)"
    left = [line.fields for line in lines if line.event == "left"]
    if not left:
        return f"{period} nothing left"
    number = "1 message" if len(left) == 1 else f"{len(left)} messages"
    return f"{period} {number} left, {_megabytes(left):.1f} MB: {_kinds(left)}"


def _megabytes(messages: Iterable[Mapping[str, Value]]) -> float:
    sizes = (fields.get("bytes") for fields in messages)
    return sum(size for size in sizes if isinstance(size, int)) / 1e6


def _kinds(messages: Iterable[Mapping[str, Value]]) -> str:
    """Count messages by kind, as in ``1 evaluate, 3 train``."""
    counted = Counter(str(fields.get("message")) for fields in messages)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(counted.items()))


def _find(noted: str, path: Path, report: Report) -> None:
    """Say which line was the head when it was noted."""
    for line in _whole(path, report):
        if line.sha256.startswith(noted):
            say(f"head {noted} is line {line.number}, of {_time(line)}: all up to it is as it was")
            return
    raise FederationError(
        f"--head {noted}: no line of {path} has this hash; it was noted wrongly, or the log was "
        "replaced since."
    )


def _write_csv(lines: Sequence[Line], path: Path) -> None:
    names = _field_names(lines)
    try:
        with replacing(path, private=True) as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file, quoting=csv.QUOTE_ALL)
            table.writerow(["line", "time", "event", *map(csv_cell, names)])
            for line in lines:
                cells = (_cell(line.fields.get(name)) for name in names)
                table.writerow([line.number, _time(line), csv_cell(line.event), *cells])
    except OSError as error:
        raise SettingsError(f"--csv {path} cannot be written: {error}") from error


def _field_names(lines: Sequence[Line]) -> list[str]:
    """Return the names of all fields of these lines, the well-known ones first."""
    found = dict.fromkeys(name for line in lines for name in line.fields)
    first = [name for name in _FIRST_FIELDS if name in found]
    return [*first, *(name for name in found if name not in _FIRST_FIELDS)]


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return csv_cell(value) if isinstance(value, str) else str(value)


def _told(line: Line) -> str:
    return ", ".join(f"{name} {value}" for name, value in line.fields.items())


def _time(line: Line) -> str:
    return line.moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _since(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(
            f"--since {text}: give a date such as 2026-03-01, or 2026-03-01T08:00."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _events(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name not in EVENTS:
            raise SettingsError(f"--event {name}: is unknown; known are {', '.join(EVENTS)}.")
    return frozenset(names)


def _noted(text: str | None) -> str:
    if text is None:
        return ""
    noted = "".join(text.split()).lower()
    if not _SHORTEST_HEAD <= len(noted) <= _HASH_LENGTH or set(noted) - set("0123456789abcdef"):
        raise SettingsError(
            f"--head {text}: give {_SHORTEST_HEAD} to {_HASH_LENGTH} of the digits 0-9 and a-f "
            "that were printed as the head."
        )
    return noted


if __name__ == "__main__":
    main()
