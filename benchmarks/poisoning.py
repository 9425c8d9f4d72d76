"""What one poisoned site of five does to a federation, and what helps.

``python benchmarks/poisoning.py 601 RESULTS.jsonl`` trains small federations on the chest X-rays of
``examples/segmentation`` (converted and planned as its README says), one after another in this
process, and prints a table. Three sites hold cases of Guangzhou, two of Hannover; one of Guangzhou
sends something else than what it trained. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.case_table import read_case_table
from nnunetv2_federated.federation.errors import RoundError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.client_app import find_site, make_client_app
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.launch import prepare
from nnunetv2_federated.flower.records import ARRAYS, pack_weights, unpack_weights
from nnunetv2_federated.flower.server_app import make_server_app
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.site_cases import sites_of_fold
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.site_pool import SitePool

SITES_OF_CENTRE = {"guangzhou": 3, "hannover": 2}
POISONED = 0
"""Index of the site, ``guangzhou_1``."""

Attack = Callable[[Vector, np.random.Generator], Vector]
"""From the site's honest update to the one it sends."""


def noise_like(update: Vector, rng: np.random.Generator, times: float) -> Vector:
    """Random numbers, ``times`` as long as the update."""
    noise = rng.standard_normal(update.size).astype(np.float32)
    return noise * np.float32(times * np.linalg.norm(update) / np.linalg.norm(noise))


ATTACKS: dict[str, Attack | None] = {
    "honest": None,
    "sign-flipped": lambda update, _: -update,
    "sign-flipped x9": lambda update, _: -9 * update,  # just within the bound of auto
    "scaled x100": lambda update, _: 100 * update,
    "random, honest norm": lambda update, rng: noise_like(update, rng, 1),
    "random, norm x100": lambda update, rng: noise_like(update, rng, 100),
}

DEFENCES: dict[str, dict[str, Any]] = {
    "fedavg, no bound": {},
    "fedavg, auto, refuse": {"max_update_norm": "auto", "min_replies": 4},
    "fedavg, auto, clip": {"max_update_norm": "auto", "oversized_update": "clip"},
    "krum": {"strategy": "krum", "strategy_options": {"num_malicious_nodes": 1}},
    "fedtrimmedavg": {"strategy": "fedtrimmedavg", "strategy_options": {"beta": 0.2}},
    "fedmedian": {"strategy": "fedmedian"},
}


@dataclass(frozen=True)
class Arm:
    """One training."""

    defence: str
    attack: str
    seed: int


def arms(seeds: int) -> Iterator[Arm]:
    """All trainings; more than one seed for the honest baseline only, to see the noise."""
    for attack, defence in itertools.product(ATTACKS, DEFENCES):
        if (attack, defence) != ("honest", "fedavg, auto, clip"):  # as with refuse
            yield Arm(defence, attack, 1)
    for seed in range(2, seeds + 1):
        yield Arm(next(iter(DEFENCES)), "honest", seed)


class NoPlots(MetaLogger):
    """nnU-Net's logger without ``progress.png``, which would take most of the time."""

    def __init__(self, logger: MetaLogger) -> None:
        self.__dict__.update(vars(logger))

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nothing."""


def poisoning(attack: Attack, rng: np.random.Generator) -> Mod:
    """Change what the poisoned site sends."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        poisoned = context.node_config["partition-id"] == POISONED
        if poisoned and message.metadata.message_type == MessageType.TRAIN:
            sent = unpack_weights(message.content)
            update = attack(unpack_weights(reply.content) - sent, rng)
            reply.content[ARRAYS] = pack_weights(sent + update)
        return reply

    return mod


def deal(table: Path) -> dict[str, list[str]]:
    """Deal each centre's patients to its sites in turn; test cases are left out."""
    sites: dict[str, list[str]] = {}
    turns: dict[str, dict[str, int]] = {centre: {} for centre in SITES_OF_CENTRE}
    for case, row in sorted(read_case_table(table).items()):
        centre = row["site"]
        if row["split"] == "test" or centre not in SITES_OF_CENTRE:
            continue
        turn = turns[centre].setdefault(row["patient"], len(turns[centre]))
        name = f"{centre}_{turn % SITES_OF_CENTRE[centre] + 1}"
        sites.setdefault(name, []).append(case)
    return sites


def train(arm: Arm, dataset_id: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one federation, and validate its last model on the cases of fold 0."""
    dataset = load_dataset(dataset_id, "nnUNetPlans")
    raw = Path(os.environ["nnUNet_raw"])  # noqa: SIM112  # nnU-Net's own name
    sites = sites_of_fold(dataset, "2d", 0, deal(raw / dataset.name / "cases.csv"))
    settings = FederationSettings(
        rounds=args.rounds,
        iterations_per_epoch=args.iterations,
        val_iterations=1,
        batch_size=args.batch_size,
        global_validation=False,
        resident_trainers=len(sites),
        seed=arm.seed,
        **{"max_update_norm": "none", **DEFENCES[arm.defence]},
    )
    run = Run(dataset.name, "2d", 0, "nnUNetTrainer", "nnUNetPlans", "cpu", settings, sites)
    attack = ATTACKS[arm.attack]
    mods = [poisoning(attack, np.random.default_rng(arm.seed))] if attack else []
    folder = prepare(run)
    config = {"run-folder": str(folder)}
    pool = SitePool()
    try:
        app = make_client_app(functools.partial(find_site, pool), mods=mods)
        grid = InProcessGrid(app, len(sites), config)
        with quiet():
            trainer = build_trainer(run, dataset)
        trainer.logger = NoPlots(trainer.logger)
        server = make_server_app(trainer=trainer)
        server(grid, Context(1, 1, {}, RecordDict(), dict(config)))
        dice, why = test(run), ""
    except RoundError as error:
        dice, why = {}, str(error)
    finally:
        pool.close()
    history = folder.parent / "federation.json"
    rounds = json.loads(history.read_text())["rounds"] if history.is_file() else []
    return {"dice": dice, "why": why, "updates": [r["updates"] for r in rounds]}


def test(run: Run) -> dict[str, float]:
    """Mean Dice of the last model over each centre's validation cases of fold 0, and over all."""
    model = GlobalModel(run)
    model.load_checkpoint()
    trainer = model.trainer
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        use_mirroring=False,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    dice: dict[str, list[float]] = {centre: [] for centre in SITES_OF_CENTRE}
    for site in run.sites:
        names = list(site.validation_cases)
        cases = trainer.dataset_class(trainer.preprocessed_dataset_folder, names)
        for case in names:
            data, segmentation, _, _ = cases.load_case(case)
            logits = predictor.predict_sliding_window_return_logits(torch.tensor(data[:]))
            found = logits.argmax(0).numpy() == 1
            truth = np.array(segmentation[0])
            found &= (truth == 0) | (truth == 1)  # 2 is ignored
            both, either = (found & (truth == 1)).sum(), found.sum() + (truth == 1).sum()
            dice[site.name.rpartition("_")[0]].append(float(2 * both / either))
    everyone = [value for values in dice.values() for value in values]
    return {name: statistics.fmean(own) for name, own in {"all": everyone, **dice}.items()}


def written(result: dict[str, Any] | None) -> str:
    """Write a cell: all, and the two centres."""
    if not result or not result["dice"]:
        return "-"
    everyone, *centres = (f"{value:.3f}" for value in result["dice"].values())
    return f"{everyone} ({' / '.join(centres)})"


def show(results: dict[Arm, dict[str, Any]]) -> None:
    """Print a row for each defence, and what the baseline's seeds say about noise."""
    print("| | " + " | ".join(ATTACKS) + " |")
    print("| --- |" + " --- |" * len(ATTACKS))
    for defence in DEFENCES:
        shown = [written(results.get(Arm(defence, attack, 1))) for attack in ATTACKS]
        print(f"| {defence} | " + " | ".join(shown) + " |")
    baseline = next(iter(DEFENCES))
    honest = [a for a in results if a.attack == "honest" and a.defence == baseline]
    dice = [results[arm]["dice"]["all"] for arm in honest]
    print(f"honest {baseline}, seeds 1 to {len(dice)}: {', '.join(f'{d:.3f}' for d in dice)}")
    if len(dice) > 1:
        print(f"standard deviation {statistics.stdev(dice):.3f}")
    for arm, result in results.items():
        outcomes = [
            f"{site} {update['outcome']}"
            for updates in result["updates"]
            for site, update in updates.items()
            if update["outcome"] != "accepted"
        ]
        counted = ", ".join(f"{what} {outcomes.count(what)}x" for what in sorted(set(outcomes)))
        if counted or result["why"]:
            print(f"{arm.defence}; {arm.attack}: {counted} {result['why']}")


def main() -> None:
    """Train what is still to be trained, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="id of the converted and planned dataset")
    parser.add_argument("results", type=Path, help="file to collect results in")
    parser.add_argument("--rounds", type=int, default=6, help="(6)")
    parser.add_argument("--iterations", type=int, default=6, help="of a site and round (6)")
    parser.add_argument("--batch-size", type=int, default=2, help="(2)")
    parser.add_argument("--seeds", type=int, default=3, help="of the honest baseline (3)")
    args = parser.parse_args()
    os.environ.update(nnUNet_n_proc_DA="0", nnUNet_compile="f")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    results: dict[Arm, dict[str, Any]] = {}
    if args.results.is_file():
        for line in args.results.read_text().splitlines():
            content = json.loads(line)
            results[Arm(**content["arm"])] = content["result"]
    for arm in arms(args.seeds):
        if arm not in results:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["nnUNet_results"] = folder  # noqa: SIM112  # nnU-Net's own name
                results[arm] = train(arm, args.dataset, args)
            with args.results.open("a") as file:
                file.write(json.dumps({"arm": vars(arm), "result": results[arm]}) + "\n")
            print(f"{arm.defence}; {arm.attack}; seed {arm.seed}: {written(results[arm])}")
    show(results)


if __name__ == "__main__":
    main()
