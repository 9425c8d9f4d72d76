"""What imports what: no circle between modules, and nothing heavy in light commands."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import EvaluationProposal
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.site.consent import Agreement, Consent, NotApprovedError

PACKAGES = ("nnunetv2_federated", "nnunetv2_cls")
"""Packages without a circle between their modules."""
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nnunetv2_federated"
HEAVY = ("torch", "nnunetv2", "timm", "scipy", "matplotlib")
MODEL = ModelDescription(
    *({"plans_name": "P", "configurations": {"2d": {}}}, {"labels": {"a": 1}}, "2d"),
    *("nnUNetTrainer", [0], ["0" * 64], 50, "0" * 64, [0, 1], []),
)
EVALUATION = EvaluationProposal([MODEL], "Ts", ["Dice"], 5, [0.5])
PLANNING = PlanProposal(
    "Dataset901_Balls", {"planner": "ExperimentPlanner"}, ["2d"], 5, False, False
)
TRAINING = Proposal(
    run_id="first",
    dataset="Dataset777_OfTheServer",
    configuration="2d",
    fold=0,
    queue={"2d": [0]},
    trainer="nnUNetTrainerFederated",
    plans_name="nnUNetPlans",
    plans_hash="0" * 64,
    site_index=0,
    settings=asdict(FederationSettings(rounds=2)),
)


def run_python(program: str, folder: Path | None = None) -> str:
    """Run a program in a Python of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout


def imported(names: tuple[str, ...]) -> str:
    return f"print([name for name in {names} if name in __import__('sys').modules])"


@pytest.mark.parametrize("command", ["audit", "privacy", "provision", "status", "trainer_folder"])
def test_a_command_that_only_reads_and_writes_files_is_there_at_once(command: str) -> None:
    program = f"import nnunetv2_federated.cli.{command}; {imported(HEAVY)}"
    assert run_python(program) == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        *("attack", "audit", "check", "evaluate", "privacy", "release", "site", "status"),
        "trainer_folder",
        *("train", "server", "compare", "partition", "plan"),
    ],
)
def test_help_needs_neither_torch_nor_nnunet_nor_flower(command: str) -> None:
    module = f"nnunetv2_federated.cli.{command}"
    program = (
        f"import contextlib, {module}\n"
        f"with contextlib.suppress(SystemExit): {module}.main(['--help'])\n"
        f"{imported((*HEAVY, 'flwr'))}"
    )
    said = run_python(program)
    assert said.startswith("usage: nnUNetv2_")
    assert said.endswith("\n[]\n")


def test_a_wrong_setting_is_refused_without_torch_nnunet_or_flower(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text('backend = "Ray"\n')
    argv = ["901", "2d", "0", "--settings", "federation.toml"]
    program = (
        "import contextlib, sys, nnunetv2_federated.cli.train as train\n"
        "sys.stderr = sys.stdout\n"
        f"try: train.main({argv})\nexcept SystemExit as end: print(end.code)\n"
        f"{imported((*HEAVY, 'flwr'))}"
    )
    assert run_python(program, tmp_path).splitlines() == [
        'error: --settings federation.toml: backend = "Ray": must be one of in-process, ray.',
        "2",
        "[]",
    ]


def test_the_process_of_a_comparisons_training_has_nothing_of_the_commands() -> None:
    program = (
        "import sys, nnunetv2_federated.experiment.train_run\n"
        "print([name for name in sys.modules if name.startswith('nnunetv2_federated.cli')])"
    )
    assert run_python(program) == "[]\n"


def test_a_key_is_made_without_torch_nnunet_or_flower(tmp_path: Path) -> None:
    program = (
        "import nnunetv2_federated.cli.site as site\n"
        f"site.main(['--new-key', 'bern'])\n{imported((*HEAVY, 'flwr'))}"
    )
    said = run_python(program, tmp_path)
    assert said.startswith("made bern/site.key")
    assert said.endswith("\n[]\n")


@pytest.mark.parametrize("agreement", [TRAINING, PLANNING, EVALUATION], ids=lambda a: a.what)
def test_an_approval_reads_files_and_imports_no_framework(
    tmp_path: Path, agreement: Agreement
) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    bundle = tmp_path / "sites" / "bern"
    consent = Consent("bern", bundle / "work")
    with pytest.raises(NotApprovedError):
        consent.require(agreement)
    flags = ["901", "--site", str(bundle / "site.toml"), "--approve", agreement.approval()[:12]]
    heavy = ("torch", "timm", "scipy", "matplotlib", "flwr")
    program = (
        f"import nnunetv2_federated.cli.site as site\nsite.main({flags})\n{imported(heavy)}\n"
        f"site.main({[*flags[:3], '--withdraw', agreement.approval()[:12]]})\n{imported(heavy)}"
    )

    said = run_python(program).splitlines()

    # in words first, then the decision
    begins = ("training of 2d, fold 0, with", "planning together; the coord", "evaluation of 1 tr")
    assert said[0].startswith(begins)
    decided = said.index(f"approved {agreement.approval()[:12]}")
    assert said[decided - 1] == f"approval hash: {agreement.approval()}"
    assert said[decided + 1 :] == [
        "[]",
        f"withdrawn {agreement.approval()}; the site takes no part in it from the next message on",
        "[]",
    ]
    assert not consent.is_approved(agreement)


def imports_of(package: str) -> dict[str, set[str]]:
    """Return, for each module of a package, the modules of the package that it imports.

    Imports within functions and under ``TYPE_CHECKING`` count as well.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    files = {
        ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in root.rglob("*.py")
    }
    return {
        name: {
            module
            for node in ast.walk(ast.parse(path.read_text()))
            for module in imported_modules(node, files)
            if module != name
        }
        for name, path in files.items()
    }


def imported_modules(node: ast.AST, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules, of those given, that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not resolved here"
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            if submodule in modules:
                yield submodule
            elif node.module in modules:
                yield str(node.module)


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for imported in sorted(graph[module]):
            if imported not in order:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in stack:
                lowest[module] = min(lowest[module], order[imported])
        if lowest[module] == order[module]:
            start = stack.index(module)
            component = set(stack[start:])
            del stack[start:]
            if len(component) > 1:
                found.append(component)

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def test_a_circle_is_found_by_every_road_between_its_modules() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [{"d", "e"}, {"a", "b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_deferred_imports_and_those_for_types_alone_count() -> None:
    source = """
if TYPE_CHECKING:
    from p.first import Thing
def later():
    from p import second
    import p.third
"""
    modules = dict.fromkeys(("p", "p.first", "p.second", "p.third"), Path())
    found = {m for node in ast.walk(ast.parse(source)) for m in imported_modules(node, modules)}
    assert found == {"p.first", "p.second", "p.third"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    graph = imports_of(package)
    assert len(graph) > 20
    assert circles(graph) == []


# What of Flower is used where, and what the pure rules are made of

PUBLIC = (
    "flwr.app",
    "flwr.clientapp",
    "flwr.clientapp.typing",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
)
"""Modules that Flower documents."""

WITH_INTERNALS = {
    "flower/in_process.py",
    "flower/ray_backend.py",
    "flower/deployment/message_objects.py",
    "flower/deployment/server/control.py",
    "flower/deployment/server/inquiry.py",
    "flower/deployment/server/network_grid.py",
    "flower/deployment/server/superlink.py",
    "flower/deployment/site/inbox.py",
    "flower/deployment/site/supernode.py",
}
"""Where all others are used: what has to be looked at for a new version of Flower."""


def modules_in(file: Path) -> Iterator[str]:
    """Yield the name of each module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield str(node.module)


def test_what_is_internal_to_flower_is_imported_in_named_modules_only() -> None:
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for module in modules_in(file)
        if module.split(".")[0] == "flwr" and module not in PUBLIC
    }
    assert found == WITH_INTERNALS


def test_the_architecture_names_the_same_modules() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    start = text.index("What is internal to Flower")
    sentence = text[start : text.index("`flower/deployment/server/storage.py`", start)]
    assert set(re.findall(r"`(flower/[a-z_/]+\.py)`", sentence)) == WITH_INTERNALS


def test_the_rules_are_made_of_numpy_pydantic_and_the_standard_library() -> None:
    allowed = {"numpy", "pydantic", "pydantic_core", *sys.stdlib_module_names}
    for file in (PACKAGE / "federation").glob("**/*.py"):
        for module in modules_in(file):
            ours = module.startswith("nnunetv2_federated.federation")
            assert ours or module.split(".")[0] in allowed, f"{file.name} imports {module}"


def test_masks_are_made_of_two_libraries_for_cryptography_and_the_rules() -> None:
    allowed = {"numpy", "pydantic", "cryptography", "Crypto", *sys.stdlib_module_names}
    ours = ("nnunetv2_federated.secure", "nnunetv2_federated.federation")
    for file in (PACKAGE / "secure").glob("*.py"):
        for module in modules_in(file):
            known = module.startswith(ours) or module.split(".")[0] in allowed
            assert known, f"{file.name} imports {module}"
