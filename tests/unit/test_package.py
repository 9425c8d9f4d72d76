"""What the package tells about itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

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


def pinned(name: str) -> dict[str, Version]:
    lines = (REPOSITORY / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {package: Version(version) for package, version in pairs}


def test_the_lowest_and_the_highest_versions_tested_are_those_that_are_allowed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    allowed = {(r := Requirement(line)).name: r.specifier for line in project["dependencies"]}
    lowest, highest = pinned("constraints-lowest.txt"), pinned("constraints-highest.txt")
    assert lowest.keys() == highest.keys() == {"flwr", "nnunetv2"}
    for name, low in lowest.items():
        bounds = {part.operator: Version(part.version) for part in allowed[name]}
        high = highest[name]
        assert low == bounds[">="]
        assert low <= pinned("constraints.txt")[name] <= high
        assert Version(f"{high.major}.{high.minor + 1}") == bounds["<"]


def test_what_was_tested_with_is_allowed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for line in (*project["dependencies"], *(line for extra in extras for line in extra)):
        required = Requirement(line)
        version = pinned("constraints.txt").get(required.name.lower())
        assert version is None or version in required.specifier, line
