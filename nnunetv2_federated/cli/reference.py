"""Write ``docs/reference.md`` from the records of choices: ``python -m ... docs/reference.md``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from nnunetv2_federated.cli import (
    attack,
    audit,
    check,
    compare,
    evaluate,
    find_best_configuration,
    partition,
    plan,
    privacy,
    provision,
    release,
    server,
    site,
    status,
    train,
    tune,
)
from nnunetv2_federated.cli.flags import default_text, flag_names, spell
from nnunetv2_federated.cli.site_choices import SiteCommandChoices
from nnunetv2_federated.experiment import choices
from nnunetv2_federated.experiment.evaluate_choices import EvaluateChoices
from nnunetv2_federated.experiment.release_choices import ReleaseChoices
from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.federation.choice import (
    Choices,
    allowed_by,
    choice_of,
    default_of,
    group_of,
    hints_of,
    names_of,
    spell_key,
)

_TITLE = """# Reference of commands and settings

Written by `python -m nnunetv2_federated.cli.reference docs/reference.md` from the records in
`nnunetv2_federated/experiment/choices.py` and `nnunetv2_federated/cli`; change those, not this
page. A flag that has a key can stand in the file that `--settings` names; flags win over the file,
and relative paths in the file are relative to it.
"""

_HEAD = ("| flag | key | allowed | default | |", "|---|---|---|---|---|")

_COMMANDS: tuple[tuple[str, str, type[Choices], Collection[str]], ...] = (
    ("nnUNetv2_train_federated", train.DESCRIPTION, choices.TrainChoices, train.WITHOUT),
    ("nnUNetv2_federated_server", server.DESCRIPTION, choices.TrainChoices, server.WITHOUT),
    ("nnUNetv2_federated_compare", compare.DESCRIPTION, choices.CompareChoices, compare.WITHOUT),
    ("nnUNetv2_federated_tune", tune.DESCRIPTION, TuneChoices, ()),
    ("nnUNetv2_federated_evaluate", evaluate.DESCRIPTION, EvaluateChoices, ()),
    (
        "nnUNetv2_find_best_configuration_federated",
        find_best_configuration.DESCRIPTION,
        choices.BestChoices,
        (),
    ),
    ("nnUNetv2_partition", partition.DESCRIPTION, choices.PartitionChoices, ()),
    (
        "nnUNetv2_plan_and_preprocess_federated",
        plan.DESCRIPTION,
        choices.PlanChoices,
        (),
    ),
    (
        "nnUNetv2_federated_provision",
        provision.DESCRIPTION,
        provision.ProvisionChoices,
        (),
    ),
    ("nnUNetv2_federated_site", site.DESCRIPTION, SiteCommandChoices, ()),
    ("nnUNetv2_federated_attack", attack.DESCRIPTION, attack.AttackChoices, ()),
    ("nnUNetv2_federated_audit", audit.DESCRIPTION, audit.AuditChoices, ()),
    ("nnUNetv2_federated_check", check.DESCRIPTION, check.CheckChoices, ()),
    ("nnUNetv2_federated_privacy", privacy.DESCRIPTION, privacy.CalculatorChoices, ()),
    ("nnUNetv2_federated_release", release.DESCRIPTION, ReleaseChoices, ()),
    ("nnUNetv2_federated_status", status.DESCRIPTION, status.StatusChoices, ()),
)


def reference() -> str:
    """Return the page."""
    sections = [_section(*command) for command in _COMMANDS]
    return "\n".join([_TITLE, *sections])


def _section(title: str, description: str, record: type[Choices], without: Collection[str]) -> str:
    lines = [f"## {title}", "", " ".join(description.split()), ""]
    names = flag_names(record, without)
    for group in dict.fromkeys(group_of(record, name) for name in names):
        own = [name for name in names if group_of(record, name) == group]
        lines += [f"### {group}", "", *_HEAD]
        lines += [_row(record, name) for name in own]
        lines.append("")
    lines += _tables(record)
    return "\n".join(lines)


def _row(record: type[Choices], name: str) -> str:
    cells = (
        f"`{spell(record, name)}`",
        f"`{spell_key(record, name)}`" if _in_files(record, name) else "",
        allowed_by(hints_of(record)[name]),
        _default(record, name),
        choice_of(record, name).help,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _in_files(record: type[Choices], name: str) -> bool:
    """Return whether a settings file can have a field: the command must take one."""
    flag_only = choice_of(record, name).positional or name in names_of(choices.SettingsFile)
    return issubclass(record, choices.SettingsFile) and not flag_only


def _default(record: type[Choices], name: str) -> str:
    default = default_of(record, name)
    if default is dataclasses.MISSING:
        return "required"
    return str(default).lower() if isinstance(default, bool) else default_text(record, name)


def _tables(record: type[Choices]) -> Iterator[str]:
    """Yield what is said of tables, which only a settings file has."""
    tables = [name for name in names_of(record) if choice_of(record, name).table]
    if tables:
        yield from ("### tables of the settings file", "")
    for name in tables:
        spelled = f"[{name}.NAME]" if name == "federated" else f"[{name}]"
        yield f"- `{spelled}`: {choice_of(record, name).help}"
    if tables:
        yield ""


def main() -> None:
    """Write the page into the file that is named."""
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
