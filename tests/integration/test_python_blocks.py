"""Python blocks of the documentation, run on small data: what a reader would copy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from small_datasets import nnunet_in, plan_and_preprocess, write_dataset

REPOSITORY = Path(__file__).parents[2]
SHORT = "rounds=1, iterations_per_epoch=1, val_iterations=1"


def block(page: str) -> str:
    """Return the first Python block of a page."""
    found = re.search(r"```python\n(.*?)```", (REPOSITORY / page).read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "block", "exec"), names)  # noqa: S102  # what a reader would do
    return names


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a test folders of its own, as what it saves must not reach others."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    return tmp_path


@pytest.mark.slow(25)
def test_the_readme_deals_trains_and_shows_its_rounds(small: Path) -> None:
    assert len(block("README.md").splitlines()) <= 12
    with nnunet_in(small):
        write_dataset(small / "raw", "Dataset941_Balls", (32, 32))
        plan_and_preprocess(941, ["2d"])
        names = run(block("README.md").replace("501", "941").replace("rounds=100", SHORT))
    model = names["model"]
    assert 0 <= model.headline.value <= 1
    assert (model.folder / "checkpoint_final.pth").is_file()
    assert len(names["run"].sites) == 3


@pytest.mark.slow(25)
def test_sites_are_planned_for_trained_and_evaluated_again(small: Path) -> None:
    code = block("docs/planning.md").replace('2d", 0,', f'2d", 0, {SHORT},')
    code += "again = federated.evaluate(run)\nmodel = federated.train(run, resume=True)\n"
    for listed, here in (("101", "942"), ("102", "943"), (", 103", "")):
        code = code.replace(listed, here)
    with nnunet_in(small):
        for number in (942, 943):
            write_dataset(small / "raw", f"Dataset{number}_Balls", (32, 32), cases=6)
        names = run(code)
    assert [site.name for site in names["run"].sites] == ["Dataset942_Balls", "Dataset943_Balls"]
    assert names["again"].headline == names["model"].headline
    assert [record.round for record in names["model"].history.rounds] == [0]


@pytest.mark.slow(25)
@pytest.mark.usefixtures("forked_trainings")
def test_models_are_compared(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = block("docs/comparing.md").replace("601", "944").replace("[1, 2, 3]", "[1]")
    code = code.replace(
        '["fedavg", "fedprox"]', f'["fedavg"], arms=["federated"], sites=2, {SHORT}'
    )
    with nnunet_in(small):
        write_dataset(small / "raw", "Dataset944_Balls", (32, 32))
        plan_and_preprocess(944, ["2d"])
        result = run(code)["result"]
    assert (result.models, result.failed) == (1, 0)
    assert result.report.is_file()
    assert "round 1/1  lr 0.01000" in next(result.folder.rglob("train.log")).read_text()
    assert f"report: {result.report}" in capsys.readouterr().out
