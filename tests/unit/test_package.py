"""What the package tells about itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nnunetv2_federated

REPOSITORY = Path(__file__).parents[2]


def test_the_version_stands_in_one_place_and_is_cited() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = (REPOSITORY / "CITATION.cff").read_text().splitlines()
    assert nnunetv2_federated.__version__ == project["version"]
    assert f"version: {project['version']}" in citation


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, nnunetv2_federated; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert not {"torch", "numpy", "flwr", "nnunetv2", "importlib.metadata"} & {*done.stdout.split()}


def test_another_attribute_is_unknown() -> None:
    with pytest.raises(AttributeError, match="no attribute 'versoin'"):
        nnunetv2_federated.versoin  # noqa: B018
