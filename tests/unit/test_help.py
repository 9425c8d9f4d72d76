"""Every command describes itself."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest


def test_every_command_describes_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = entry_points(group="console_scripts")
    ours = [s for s in scripts if s.value.startswith(("nnunetv2_federated.", "nnunetv2_cls."))]
    for command in ours:
        if command.name == "nnUNetv2_federated_trainer_folder":
            continue  # prints a folder
        monkeypatch.setattr("sys.argv", [command.name, "--help"])
        with pytest.raises(SystemExit) as end:
            command.load()()
        assert end.value.code == 0
        assert f"usage: {command.name}" in capsys.readouterr().out
    assert len(ours) >= 13
