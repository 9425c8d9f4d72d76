"""The Python API: what ``import nnunetv2_federated`` offers, and at what price."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnunetv2_federated
from nnunetv2_federated import api
from nnunetv2_federated.experiment.choices import PartitionChoices, TrainChoices

HEAVY = ("torch", "nnunetv2", "flwr", "numpy", "pydantic")


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_the_package_imports_nothing_else() -> None:
    program = f"import sys, nnunetv2_federated; print([n for n in {HEAVY} if n in sys.modules])"
    assert run_python(program) == "[]\n"


def test_every_exported_name_is_there() -> None:
    for name in nnunetv2_federated.__all__:
        assert getattr(nnunetv2_federated, name).__name__ == name
    assert set(nnunetv2_federated.__all__) <= set(dir(nnunetv2_federated))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = nnunetv2_federated.trian


def test_no_module_of_the_package_hides_an_exported_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(nnunetv2_federated.__path__)}
    assert modules & set(nnunetv2_federated.__all__) == set()


@pytest.mark.parametrize(
    "modules",
    [
        ("nnunetv2_federated", "nnunetv2_federated.experiment.train"),
        ("nnunetv2_federated.experiment.train", "nnunetv2_federated"),
    ],
)
def test_train_is_the_function_in_any_order_of_imports(modules: tuple[str, str]) -> None:
    for module in modules:
        importlib.import_module(module)
        assert nnunetv2_federated.train is api.train
        assert nnunetv2_federated.partition is api.partition
        assert nnunetv2_federated.plan is api.plan


def test_choices_are_spelled_as_in_a_settings_file_and_a_path_may_be_text() -> None:
    chosen = api._choose(
        PartitionChoices, dataset=501, partition="column", case_table="cases.csv", by="site"
    )
    assert (chosen.dataset, chosen.method) == ("501", "column")
    assert chosen.case_table == Path("cases.csv")
    assert chosen.chosen == {"dataset", "method", "case_table", "by"}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"rounds": "ten"}, "--rounds ten: must be a whole number of at least 1."),
        ({"rounds": True}, "--rounds True: must be a whole number of at least 1."),
        ({"backend": "Ray"}, "--backend Ray: must be one of in-process, ray."),
        ({"colour": 1}, "colour is unknown; known are "),
        ({"case_table": 3}, "--case-table 3: must be a path."),
    ],
)
def test_a_choice_that_does_not_fit_is_one_line(choices: dict[str, object], message: str) -> None:
    target = {"dataset": 501, "configuration": "2d", "fold": 0}
    with pytest.raises(nnunetv2_federated.SettingsError) as refused:
        api._choose(TrainChoices, **target, **choices)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
