"""What is found can be written, or that is said before the first trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.experiment.tune_export import check_export
from nnunetv2_federated.federation.errors import SettingsError


def choices(study: Path, export: Path | None) -> TuneChoices:
    return TuneChoices(dataset="1", configuration="2d", fold=0, study=study, export=export)


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    study, old = tmp_path / "study", tmp_path / "old.toml"
    old.write_text("mine")
    for export in (None, old, tmp_path / "new.toml", study / "found.toml", study / "best.toml"):
        check_export(choices(study, export))
    assert [path.name for path in tmp_path.iterdir()] == ["old.toml"]
    assert old.read_text() == "mine"


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    study, file = tmp_path / "study", tmp_path / "file"
    file.touch()
    (tmp_path / "folder").mkdir()
    for export, problem in (
        (tmp_path / "folder", "is a folder; give the name of a file"),
        (tmp_path / "none" / "best.toml", "cannot be written .No such file or directory"),
        (file / "best.toml", "cannot be written .Not a directory"),
        (Path("/proc/best.toml"), "/proc cannot be written"),
        (study / "study.db", "the study writes a study.db of its own there"),
    ):
        with pytest.raises(SettingsError, match=f"--export {export}: .*{problem}"):
            check_export(choices(study, export))
