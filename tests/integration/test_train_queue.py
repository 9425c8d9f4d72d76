"""Several folds by one command: in order, continued, some at a time, and their privacy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import assert_same, load_weights

from nnunetv2_federated.cli.train import main
from nnunetv2_federated.experiment.choices import TrainChoices
from nnunetv2_federated.experiment.queue import Training, resolve_queue
from nnunetv2_federated.experiment.train_queue import HowToTrain, train_queue
from nnunetv2_federated.federation.errors import FederationError, SiteError
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.limits import Limits
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.privacy.site_privacy import LEDGER, Budget, SitePrivacy

SHORT = ("--iterations-per-epoch", "1", "--val-iterations", "1", "-device", "cpu", "--rounds", "1")


class Lines(Observer):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def folds_of(results: Path) -> dict[str, Path]:
    return {path.name: path for path in results.glob("*/*/fold_*")}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trainings")
def test_a_queue_trains_what_single_commands_do_and_goes_on_where_it_was_stopped(
    dataset_2d: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = ("--sites", "2", "--seed", "3")
    main([dataset_2d, "2d", "1", *SHORT, *sites, "--quiet"])
    alone = load_weights(folds_of(results)["fold_1"])
    shutil.move(folds_of(results)["fold_1"], tmp_path / "alone")

    queue = [dataset_2d, "-c", "2d", "-f", "0", "1"]
    main([*queue, *SHORT, *sites])
    said = capsys.readouterr().out
    assert said.index("[1/2] 2d fold 0: Dice ") < said.index("[2/2] 2d fold 1: begins")
    folds = folds_of(results)
    assert set(folds) == {"fold_0", "fold_1"}
    assert_same(load_weights(folds["fold_1"]), alone)
    assert not list(results.glob("*/*queue*"))

    # as a kill between the two leaves it
    shutil.rmtree(folds["fold_1"])
    before = (folds["fold_0"] / "checkpoint_final.pth").stat().st_mtime_ns
    main([*queue, "--c", "-device", "cpu", "--parallel", "2"])  # the settings are the queue's own
    said = capsys.readouterr().out
    assert "[1/2] 2d fold 0: done before" in said
    assert "[2/2] 2d fold 1: round 1/1" in said
    assert (folds["fold_0"] / "checkpoint_final.pth").stat().st_mtime_ns == before
    assert_same(load_weights(folds_of(results)["fold_1"]), alone)

    # a fold that another command trained is not taken for one of the queue
    shutil.rmtree(folds["fold_1"])
    shutil.copytree(tmp_path / "alone", folds["fold_1"])
    for flags, text in (
        ([], "2d fold 1 was not begun in this queue"),
        (["--rounds", "2"], "--rounds 2: the run to continue has 1"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*queue, "--c", "-device", "cpu", *flags])
        assert exit_.value.code == 2
        assert text in capsys.readouterr().err


def test_nothing_is_trained_if_one_of_the_queue_is_not_possible(
    dataset_2d: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, text in (
        (["-f", "0", "7", "-c", "2d"], "fold 7 does not exist"),
        (["-f", "0", "-c", "2d", "3d_fullres"], "3d_fullres"),
        (["2d", "0", "-f", "0", "-c", "2d"], "expected DATASET alone beside -c and -f"),
        (["-f", "0", "-c", "2d", "--c"], "no earlier run"),
        (["-f", "0", "-c", "2d", "--prepare-only"], "--prepare-only: is for one training"),
        (
            ["-f", "0", "-c", "2d", "--parallel", "2", "--backend", "ray"],
            "--parallel 2 --backend ray: keep one",
        ),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([dataset_2d, *argv, *SHORT])
        assert exit_.value.code == 2
        assert text in capsys.readouterr().err
    assert not folds_of(results)


@pytest.mark.usefixtures("forked_trainings")
def test_a_training_that_fails_ends_those_at_a_time_and_is_named(
    dataset_2d: str, results: Path
) -> None:
    trainings = queue_of(dataset_2d, folds=[0, 1])
    place = results / "Dataset901_Balls" / "nnUNetTrainerFederated__nnUNetPlans__2d"
    place.mkdir(parents=True)
    (place / "fold_0").write_text("a file where the training wants its folder")
    with pytest.raises(FederationError, match=r"2d__fold_0: .*train\.log\. The same") as failed:
        train_queue(trainings[:1] * 2, HowToTrain(parallel=2))
    assert "\n" not in str(failed.value)


# At a site


def test_a_site_approves_a_queue_once_and_counts_all_its_rounds(
    dataset_2d: str, results: Path, tmp_path: Path
) -> None:
    del results
    first = proposal(dataset_2d, 0)
    small = GuardedSite(LocalSite("bern", dataset_2d, tmp_path / "a", "cpu", Limits(max_rounds=3)))
    with pytest.raises(SiteError, match=r"at most 3 rounds with this dataset; 0 are spent, .* 4"):
        small.membership.join(first)
    site = GuardedSite(LocalSite("bern", dataset_2d, tmp_path / "b", "cpu", Limits(max_rounds=4)))
    site.consent.approve(first.approval(), "test")
    site.membership.join(first)
    folder = site.membership.current()[1]
    assert folder.parent.name == "fold_0"
    site.membership.join(proposal(dataset_2d, 1))
    assert site.membership.current()[1].parent.name == "fold_1"
    # a fold that the site does not have is found out at the beginning, not when its turn comes
    with pytest.raises(SiteError, match="no dataset preprocessed for 2d, folds 0 9"):
        site.membership.join(replace(first, queue={"2d": [0, 9]}))
    site.close()


def proposal(dataset: str, fold: int) -> Proposal:
    settings = FederationSettings(rounds=2, iterations_per_epoch=1, val_iterations=1)
    return Proposal(
        run_id=f"abc.2d.{fold}",
        dataset="Dataset777_OfTheServer",
        configuration="2d",
        fold=fold,
        queue={"2d": [0, 1]},
        trainer="nnUNetTrainerFederated",
        plans_name="nnUNetPlans",
        plans_hash=load_dataset(dataset).plans_hash,
        site_index=0,
        settings=asdict(settings),
    )


# Privacy


@pytest.fixture
def unspent(dataset_2d: str) -> Iterator[str]:
    """The dataset without what other tests have spent, and without what this one spends."""
    folder = (load_dataset(dataset_2d).folder / LEDGER).parent
    shutil.rmtree(folder, ignore_errors=True)
    yield dataset_2d
    shutil.rmtree(folder, ignore_errors=True)


def queue_of(dataset: str, folds: list[int], **chosen: object) -> list[Training]:
    target = {"dataset": dataset, "configuration": "2d", "fold": folds[0], "device": "cpu"}
    queue = {"configurations": ["2d"], "folds": folds}
    short = {"sites": 1, "rounds": 1, "iterations_per_epoch": 1, "val_iterations": 1}
    return resolve_queue(TrainChoices(**{**target, **queue, **short, **chosen}))


def test_epsilon_covers_all_folds_of_a_queue(unspent: str, results: Path) -> None:
    """Some patients are in all three: in the end the ledger has nearly what was chosen."""
    del results
    chosen = {"dp_epsilon": 4.0, "dp_batch": 3, "rounds": 1, "iterations_per_epoch": 8}
    trainings = queue_of(unspent, [0, 1, 2], **chosen)
    dataset = load_dataset(unspent)
    spent, alone = [], []
    for training in trainings:
        run: Run = training.run
        privacy = SitePrivacy(run, run.sites[0], dataset, 8, Budget())
        privacy.charge(0)
        terms = privacy.terms(1)
        spent.append(terms.epsilon_spent)
        alone.append(terms.epsilon)
    assert max(alone) < 3
    assert spent == sorted(spent)
    assert 3.6 < spent[-1] <= 4.0
    # one training of its own has all of it
    single = replace(trainings[0].run, queue={})
    assert SitePrivacy(single, single.sites[0], dataset, 8, Budget()).terms(0).epsilon > 3.9
