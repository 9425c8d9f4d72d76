"""Federations of real processes on loopback."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import httpx
import pytest
import torch
from commands import run_script
from consortium import SHORT, SITES, Consortium, Network, free_port, run_all, wait_for
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import http_grid
from helpers import Weights, assert_same, load_history, load_weights
from killing import place
from small_datasets import plan_and_preprocess

from nnunetv2_federated.cli.train import main
from nnunetv2_federated.federation.aggregation import RunningMean
from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.control import Control
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, open_grid
from nnunetv2_federated.flower.deployment.server.superlink import SuperLink
from nnunetv2_federated.flower.deployment.signing import load_signing_key
from nnunetv2_federated.flower.deployment.site import supernode
from nnunetv2_federated.flower.deployment.site.membership import Membership
from nnunetv2_federated.flower.deployment.site.supernode import SuperNode
from nnunetv2_federated.flower.server_app import Server
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_split
from nnunetv2_federated.nnunet.planning.raw_site import RawSite
from nnunetv2_federated.nnunet.training.personal_model import PersonalTraining
from nnunetv2_federated.nnunet.training.site import Site
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

pytestmark = pytest.mark.deployment

CHEST_XRAYS = Path(__file__).parents[3] / "shared" / "data" / "cxr_lung.tar"
EXAMPLES = Path(__file__).parents[2] / "examples" / "segmentation"


@pytest.fixture
def consortium(tmp_path: Path, dataset_2d: str, nnunet_folders: Path) -> Iterator[Consortium]:
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_2d).name
    fold_split(load_dataset(dataset_2d), "2d", 0)  # writes splits_final.json
    running = Consortium(tmp_path, dataset, SITES)
    yield running
    running.stop()


@pytest.fixture
def chest_xrays(
    tmp_path: Path, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, list[str]]]:
    """A few real chest X-rays of three centres, planned; and which centre has which."""
    if not CHEST_XRAYS.is_file():
        pytest.skip(f"{CHEST_XRAYS} is not there")
    with tarfile.open(CHEST_XRAYS) as archive:
        archive.extractall(tmp_path, filter="data")
    manifest = tmp_path / "cxr_lung" / "manifest.csv"
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    kept, seen = [], Counter[tuple[str, str]]()
    for row in rows:
        seen[row["site"], row["split"]] += 1
        if seen[row["site"], row["split"]] <= {"train": 8, "val": 2, "test": 1}[row["split"]]:
            kept.append(row)
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    raw = import_module("convert_cxr_lung").convert(manifest.parent, 908, 64)
    plan_and_preprocess(908, ["2d"])
    dataset = nnunet_folders / "preprocessed" / raw.name
    shutil.copyfile(raw / "splits_final.json", dataset / "splits_final.json")
    centres: dict[str, list[str]] = {}
    for row in kept:
        if row["split"] != "test":
            centres.setdefault(row["site"], []).append(row["case"])
    return dataset, centres


def trained_here(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    sites: dict[str, list[str]],
    *flags: str,
) -> tuple[Weights, Path]:
    """Train the same federation in this process, undisturbed."""
    monkeypatch.setenv("nnUNet_results", str(folder / "here"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    sites_file = folder / "sites.json"
    sites_file.write_text(json.dumps(sites))
    main([dataset, "2d", "0", "--sites-file", str(sites_file), "-device", "cpu", *flags])
    result = next((folder / "here").glob("*/*/fold_0"))
    return load_weights(result), result


@pytest.mark.realdata
def test_three_real_centres_train_together_as_if_they_were_one_machine(
    chest_xrays: tuple[Path, dict[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, centres = chest_xrays
    consortium = Consortium(tmp_path, dataset, centres)
    try:
        consortium.start_server(*SHORT)
        for site in centres:
            consortium.start_site(site)
        for site in centres:
            consortium.approve(site)
        assert consortium.wait_for_server() == 0, consortium.said("server")
    finally:
        consortium.stop()

    theirs, here = trained_here(tmp_path, monkeypatch, "908", centres, *SHORT)

    assert_same(load_weights(consortium.result), theirs)
    pooled, together = (
        json.loads((folder / "validation" / "summary.json").read_text())
        for folder in (consortium.result, here)
    )
    assert pooled["mean"]["1"]["Dice"] == pytest.approx(together["mean"]["1"]["Dice"])
    assert "metric_per_case" not in pooled

    test_images = Path(os.environ["nnUNet_raw"]) / dataset.name / "imagesTs"  # noqa: SIM112
    run_script(
        *("nnUNetv2_predict", "-i", test_images, "-o", tmp_path / "predicted"),
        *("-d", "908", "-c", "2d", "-f", "0", "-tr", "nnUNetTrainerFederated"),
        *("-device", "cpu", "-npp", "1", "-nps", "1"),
        environment=consortium.environment("server"),
        folder=tmp_path,
    )
    assert len(list((tmp_path / "predicted").glob("*.png"))) == len(centres)


@pytest.mark.slow(180)
def test_whoever_is_killed_wherever_the_weights_are_those_of_an_undisturbed_run(
    tmp_path: Path, dataset_2d: str, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a site, the SuperLink and the server, in each phase of a training."""
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_2d).name
    fold_split(load_dataset(dataset_2d), "2d", 0)
    sites = {site: SITES[site] for site in ("bern", "oslo")}
    consortium = Consortium(tmp_path, dataset, sites)
    of_site = (
        place(Membership.join),
        place(SuperNode._keep),  # it downloads
        place(FederatedRounds.train_step),
        place(torch.save, torch),  # it keeps its state
        place(push_objects, supernode),  # it uploads
        place(Site.validate_fully),
    )
    of_server = (
        place(push_objects, http_grid),  # it asks
        place(RunningMean.add),
        place(torch.save, torch),  # its checkpoint
    )
    # the superlink last: what the site has done by then needs not be done again
    kills = dict.fromkeys(of_site, ("bern", "server", "superlink"))
    # what is done once is not done again for a server or a SuperLink that lost its answer
    kills[place(Site.validate_fully)] = ("bern", "server")
    kills[place(PersonalTraining._write)] = ("bern", "server")
    consortium.plan_kills("bern", kills)
    consortium.plan_kills(
        "server",
        {
            **dict.fromkeys(of_server, ("oslo", "superlink", "server")),
            place(Server._validate_fully): ("superlink", "oslo"),
            place(SuperLink._answers): ("superlink", "superlink", "server"),
            place(SuperLink._acquire_token): ("superlink", "server"),
        },
    )
    rounds = ("--rounds", "3", "--iterations-per-epoch", "2", "--val-iterations", "1")
    rounds += ("--personal", "finetune", "--personal-iterations", "2", "--personal-min-cases", "1")
    restart = {
        "server": lambda: consortium.start_server(*rounds, "--c"),
        "bern": lambda: consortium.start_site("bern", "--approve-all"),
        "oslo": lambda: consortium.start_site("oslo", "--approve-all"),
    }
    try:
        consortium.start_server(*rounds)
        for site in sites:
            consortium.start_site(site, "--approve-all")
        assert consortium.see_through(restart) == 0, consortium.all_said()
    finally:
        consortium.stop()

    assert consortium.still_alive() == []
    theirs, here = trained_here(tmp_path, monkeypatch, "901", sites, *rounds)

    assert_same(load_weights(consortium.result), theirs)
    told = load_history(consortium.result)["personal"]
    assert told == load_history(here)["personal"]
    assert told["bern"]["cases"] == 2  # 0 and 3 of fold 0
    name = "nnUNetTrainerPersonal__nnUNetPlans__2d/fold_0"
    kept = tmp_path / "bern" / "results" / dataset.name / name
    assert_same(load_weights(kept), load_weights(here / "federation" / "sites" / "bern" / name))
    assert not list((tmp_path / "server").rglob("*Personal*"))
    history = load_history(consortium.result)["rounds"]
    assert [record["round"] for record in history] == [0, 1, 2]
    assert not any(record["failed"] for record in history)


@pytest.mark.slow(110)
def test_hospitals_are_planned_for_together_whatever_is_killed_and_then_train(
    tmp_path: Path, dataset_2d: str, nnunet_folders: Path
) -> None:
    """No plans anywhere at first; a site, the server and the SuperLink die in each phase."""
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_2d).name
    cases = [f"case_{index:02d}" for index in range(12)]
    sites = {"bern": cases[:7], "lyon": cases[7:]}
    consortium = Consortium(tmp_path, dataset, sites, raw=nnunet_folders / "raw" / dataset.name)
    steps = (RawSite.survey, RawSite.fingerprint, RawSite.prepare)
    consortium.plan_kills("bern", {place(step): ("bern", "server", "superlink") for step in steps})
    restart = {
        "server": consortium.start_planning,
        "bern": lambda: consortium.start_site("bern", "-np", "1"),
    }
    try:
        consortium.start_planning()
        for site in sites:
            consortium.start_site(site, "-np", "1")
        for site in sites:
            consortium.approve(site, "planning")
        assert consortium.see_through(restart) == 0, consortium.all_said()
        assert consortium.still_alive() == []

        plans = [
            json.loads((folder / "nnUNetPlans.json").read_text())
            for folder in tmp_path.glob(f"*/preprocessed/{dataset.name}")
        ]
        assert len(plans) == 3
        assert plans[0] == plans[1] == plans[2]
        stock = json.loads((dataset / "nnUNetPlans.json").read_text())
        assert plans[0]["configurations"] == stock["configurations"]
        assert "bern: prepared: 2d 7 cases" in consortium.said("server")

        consortium.start_server("--rounds", "1", "--iterations-per-epoch", "2")
        for site in sites:
            consortium.approve(site)
        assert consortium.wait_for_server() == 0, consortium.said("server")
    finally:
        consortium.stop()

    history = load_history(consortium.result)
    assert {name: site["training_cases"] for name, site in history["sites"].items()} == {
        "bern": 5,
        "lyon": 4,
    }


@pytest.mark.slow(60)
def test_a_round_ends_without_the_site_that_hangs_and_a_federation_without_sites(
    consortium: Consortium,
) -> None:
    consortium.start_server(
        *("--rounds", "50", "--iterations-per-epoch", "2", "--val-iterations", "1"),
        *("--min-replies", "2", "--round-deadline", "15", "--wait-for-sites", "20"),
    )
    for site in SITES:
        consortium.start_site(site, "--approve-all")
    consortium.wait_until("server", "oslo takes part")
    consortium.wait_until("server", "round  2/50")
    consortium.processes["oslo"].send_signal(signal.SIGSTOP)
    consortium.wait_until("server", "failed: oslo")
    consortium.processes["oslo"].send_signal(signal.SIGCONT)
    said = len(consortium.said("server"))
    wait_for(
        lambda: "round" in consortium.said("server")[said:].split("failed: oslo")[-1],
        "a round with oslo back",
    )

    for site in SITES:
        consortium.kill(site)

    assert consortium.wait_for_server(200) == 1
    assert "are required (--min-replies)" in consortium.said("server").split("\n")[-2]


@pytest.mark.slow(110)
def test_who_says_nothing_is_named_and_the_federation_has_its_result(
    consortium: Consortium,
) -> None:
    """One site does not answer when it is asked to join, another when the rounds are done."""
    consortium.start_server(*SHORT, "--wait-for-sites", "20", "--answer-deadline", "30")
    consortium.start_site("bern", "--approve-all")
    consortium.start_silent_site("lyon", "evaluate")
    consortium.start_silent_site("oslo", "query.join")
    consortium.wait_until("oslo", "says nothing")

    consortium.wait_until("lyon", "says nothing")  # before it is asked, the weights are written
    written = load_weights(consortium.result)
    assert consortium.wait_for_server() == 0, consortium.said("server")

    said = consortium.said("server")
    assert "beginning without all sites. oslo: asked, and silent" in said
    assert said.count("lyon did not validate: no answer in time") == 2
    assert_same(load_weights(consortium.result), written)
    rounds = load_history(consortium.result)["rounds"]
    assert [sorted(record["sites"]) for record in rounds] == [["bern", "lyon"]] * 2
    assert all(record["seconds"]["round"] < 300 for record in rounds)
    summary = json.loads((consortium.result / "validation" / "summary.json").read_text())
    assert list(summary["sites"]) == ["bern"]


@pytest.mark.slow(120)
def test_a_superlink_that_fails_now_and_then_is_asked_again_at_both_ends(
    tmp_path: Path, dataset_2d: str, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_2d).name
    fold_split(load_dataset(dataset_2d), "2d", 0)
    sites = {site: SITES[site] for site in ("bern", "oslo")}
    consortium = Consortium(tmp_path, dataset, sites)
    consortium.failing = True
    try:
        consortium.start_server(*SHORT)
        for site in sites:
            consortium.start_site(site, "--approve-all")
        assert consortium.wait_for_server() == 0, consortium.all_said()
    finally:
        consortium.stop()

    assert "is this the address" not in consortium.said("bern") + consortium.said("oslo")
    theirs, _ = trained_here(tmp_path, monkeypatch, "901", sites, *SHORT)
    assert_same(load_weights(consortium.result), theirs)


@pytest.mark.slow(60)
def test_a_federation_goes_on_with_the_sites_that_are_well(
    tmp_path: Path, dataset_2d: str, nnunet_folders: Path
) -> None:
    """One answers garbage of every kind, one takes only small messages, one's disk is full."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk that is full")
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_2d).name
    fold_split(load_dataset(dataset_2d), "2d", 0)
    consortium = Consortium(tmp_path, dataset, {**SITES, "rome": SITES["lyon"]})
    bundles = consortium.credentials / "sites"
    (bundles / "rome" / "work").mkdir()
    with (bundles / "lyon" / "site.toml").open("a") as file:
        file.write("\nmax_message_mb = 1\n")
    run_all(f"mount -t tmpfs -o size=1M tmpfs {bundles / 'rome' / 'work'}")
    try:
        consortium.start_server(
            *("--rounds", "11", "--iterations-per-epoch", "1", "--val-iterations", "1"),
            *("--min-replies", "1", "--no-global-validation", "--round-deadline", "30"),
        )
        for site in ("bern", "lyon", "rome"):
            consortium.start_site(site, "--approve-all")
        consortium.start(
            "oslo", Path(__file__).parents[1] / "garbage_site.py", bundles / "oslo" / "site.toml"
        )
        assert consortium.wait_for_server(450) == 0, consortium.said("server")
    finally:
        consortium.stop()
        run_all(f"umount {bundles / 'rome' / 'work'}")

    rounds = load_history(consortium.result)["rounds"]
    garbage = [record["failed"]["oslo"] for record in rounds]
    expected = (
        r"sent \d+ weights instead of",
        r"sent \d+ weights instead of",
        r"refused: a message of more than \d+ bytes",
        "weights are not finite",
        "float16",
        "truncated",
        "not a valid TrainReport",
        "refused: the message cannot be read",
        "refused: it answers another question, or as another site",
        r"refused: a message of more than \d+ parts",
        "^(no reply|not connected)$",  # as its heartbeat was seen or not
    )
    for said, pattern in zip(garbage, expected, strict=True):
        assert re.search(pattern, said), said
    for record in rounds:
        assert list(record["sites"]) == ["bern"]
        assert "refused: a message of more than 1048576 bytes" in record["failed"]["lyon"]
        assert "No space left on device" in record["failed"]["rome"]


def test_a_run_that_the_superlink_gives_up_is_one_line(tmp_path: Path) -> None:
    address = Address("127.0.0.1", free_port())
    provision(tmp_path / "credentials", address, ["bern"])
    server = ServerSettings(tmp_path / "credentials" / "server", address)
    link = tmp_path / "link"

    def stop_in_the_middle() -> None:
        with open_grid(link, server, ["bern"], say=lambda _: None) as grid:
            assert list(grid.get_nodes()) == []
            authority = (server.credentials / "ca.crt").read_bytes()
            Control(str(address), authority).stop_run(int((link / "run").read_text()))
            grid.get_nodes()

    with pytest.raises(FederationError, match="the SuperLink has given the run up"):
        stop_in_the_middle()


@pytest.mark.versions
def test_a_site_answers_nobody_but_the_coordinator(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reaches the SuperLink's control API can submit a run; no site takes part in it."""
    credentials = consortium.credentials / "server"
    link = SuperLink(consortium.folder / "link", credentials, Address("127.0.0.1", consortium.port))
    link.start()
    try:
        assert link.register(["bern"]) == []
        consortium.start_site("bern")
        consortium.wait_until("bern", "connected")
        grid = link.acquire_run(Ed25519PrivateKey.generate())
        (node,) = grid.site_names()

        def ask() -> str:
            message = Message(RecordDict(), node, "query.describe")
            (answer,) = grid.send_and_receive([message], timeout=60)
            assert answer.has_error()
            return answer.error.reason

        assert "the signature is not the coordinator's" in ask()
        grid.signing_key = load_signing_key(credentials / "coordinator.key")
        assert "bern has not joined a federation" in ask()
        # the SuperLink is killed, or a line breaks, after a part was stored and before that is said
        push = RuntimeHttpClient.PushObject
        monkeypatch.setattr(
            RuntimeHttpClient, "PushObject", lambda *part: [push(*part), push(*part)][1]
        )
        assert "bern has not joined a federation" in ask()
        link.finish(grid, None)
    finally:
        link.stop()


@pytest.mark.versions
def test_who_has_no_key_or_trusts_another_authority_stays_outside(
    consortium: Consortium, tmp_path: Path
) -> None:
    consortium.start_server(*SHORT, "--remote-sites", "bern")
    consortium.wait_until("server", "waiting for bern")

    consortium.start_site("oslo")  # its key is not registered
    consortium.wait_until("oslo", "refuses this site")
    provision(tmp_path / "strange", Address("localhost", consortium.port), ["bern"])
    bundle = consortium.credentials / "sites" / "bern"
    (bundle / "ca.crt").write_bytes((tmp_path / "strange" / "ca.crt").read_bytes())
    consortium.start_site("bern")
    assert consortium.processes["bern"].wait(90) == 2
    assert "CERTIFICATE_VERIFY_FAILED" in consortium.said("bern")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{consortium.port}/v1/fleet/pull-messages")
    assert "takes part" not in consortium.said("server")


def test_behind_a_proxy_only_the_fleet_api_is_reachable(
    tmp_path: Path, dataset_2d: str, nnunet_folders: Path
) -> None:
    """Each site in a network namespace of its own, behind a long line that loses packets."""
    tools = all(map(shutil.which, ("ip", "nginx")))
    if os.geteuid() != 0 or not tools or not Path("/dev/net/tun").exists():
        pytest.skip("needs root, iproute2, nginx and /dev/net/tun")
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_2d).name
    fold_split(load_dataset(dataset_2d), "2d", 0)
    sites = {site: SITES[site] for site in ("bern", "oslo")}
    network = Network(sites)
    consortium = Consortium(tmp_path, dataset, sites, host="10.77.1.1")
    consortium.namespaces = network.namespaces
    try:
        network.open()
        consortium.start_proxy()
        consortium.start_server(*SHORT)
        for site in sites:
            consortium.start_site(site, "--approve-all")
        consortium.wait_until("server", "takes part")

        def status(path: str, port: int) -> str:
            """Ask from where a site is, with the right authority."""
            answer = subprocess.run(
                [
                    *consortium.inside("bern"),
                    *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"),
                    *("--cacert", str(consortium.credentials / "ca.crt")),
                    f"https://10.77.1.1:{port}{path}",
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            return answer.stdout

        assert status("/v1/control/list-nodes", consortium.port) == "403"
        assert status("/v1/runtime/acquire-task", consortium.port) == "403"
        assert status("/v1/fleet/../control/list-nodes", consortium.port) == "403"
        assert status("/v1/fleet/pull-messages", consortium.port) in ("401", "405")
        assert status("/v1/control/list-nodes", consortium.port + 1) == "000"
        assert consortium.wait_for_server() == 0, consortium.said("server")
        assert "validation Dice" in consortium.said("server")
        assert network.lines.lost > 0
    finally:
        consortium.stop()
        network.close()


@pytest.mark.versions
def test_hospitals_train_a_classifier(
    tmp_path: Path, dataset_cls: str, nnunet_folders: Path
) -> None:
    """The server has neither images nor labels."""
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_cls).name
    cases = sorted(json.loads((dataset / "labelsTr.json").read_text()))
    fold_split(load_dataset(dataset_cls), "2d_cls", 0)
    sites = {"bern": cases[: len(cases) // 2], "oslo": cases[len(cases) // 2 :]}
    consortium = Consortium(tmp_path, dataset, sites, configuration="2d_cls")
    try:
        consortium.start_server("--rounds", "2", "-tr", "nnUNetTrainerCls")
        for site in sites:
            consortium.start_site(site, "--approve-all")
        assert consortium.wait_for_server() == 0, consortium.said("server")
    finally:
        consortium.stop()

    summary = json.loads((consortium.result / "validation" / "summary.json").read_text())
    assert summary["sites"].keys() == sites.keys()
    assert 0 <= summary["foreground_mean"]["AUROC"] <= 1
    assert "case_" not in json.dumps(summary)


@pytest.mark.slow(70)
def test_the_site_whose_privacy_budget_is_spent_leaves_by_name_and_the_others_go_on(
    consortium: Consortium,
) -> None:
    for site, most in (("lyon", "5"), ("oslo", "0.01")):
        file = consortium.credentials / "sites" / site / "site.toml"
        file.write_text(f"{file.read_text()}\nmax_epsilon = {most}\n")
    consortium.start_server(*SHORT, "--dp-epsilon", "4", "--dp-batch", "2")
    for site in SITES:
        consortium.start_site(site, "--approve-all")
    assert consortium.wait_for_server() == 0, consortium.all_said()

    said = consortium.said("server")
    assert "beginning without all sites. oslo: privacy budget spent: 0.0 of 0.01" in said
    assert "privacy of lyon: epsilon" in said.split("round 2/2")[-1]
    assert "validation" not in said.split("round 2/2")[-1]  # it is withheld
    assert "federation finished after 2 rounds; its model is not validated" in consortium.said(
        "lyon"
    )
    history = load_history(consortium.result)
    assert [sorted(record["sites"]) for record in history["rounds"]] == [["bern", "lyon"]] * 2
    assert [list(record["failed"]) for record in history["rounds"]] == [["oslo"]] * 2
    terms = {name: site["privacy"] for name, site in history["sites"].items()}
    assert {name: promise["max_epsilon"] for name, promise in terms.items()} == {
        "bern": None,
        "lyon": 5.0,
    }
    assert all(3.8 < promise["epsilon_spent"] <= 4.0 for promise in terms.values())
    assert not (consortium.result / "validation").exists()
    audits = {
        path.parts[-3]: path.read_text().count('"charged"')
        for path in consortium.folder.rglob("audit.jsonl")
    }
    assert audits == {"bern": 2, "lyon": 2, "oslo": 0}


@pytest.mark.slow(60)
def test_a_queue_is_approved_once_goes_on_after_a_kill_and_is_chosen_from(
    consortium: Consortium,
) -> None:
    queue = (*SHORT, "-c", "2d", "-f", "0", "all")
    consortium.start_server(*queue)
    for site in SITES:
        consortium.start_site(site, "--approve-all")
    consortium.wait_until("server", "[2/2] 2d fold all: begins")
    wait_for(lambda: "round 1/2" in consortium.said("server").split("begins")[-1], "second fold")
    consortium.kill("server")
    consortium.start_server(*queue, "--c")
    assert consortium.wait_for_server() == 0, consortium.all_said()

    said = consortium.said("server")
    assert "[1/2] 2d fold 0: done before" in said
    assert "[2/2] 2d fold all: continues" in said
    results = consortium.folder / "server" / "results"
    for fold in ("fold_0", "fold_all"):
        (folder,) = results.glob(f"*/*/{fold}")
        assert len(load_history(folder)["rounds"]) == 2
        assert (folder / "validation" / "summary.json").is_file()
    assert not list(results.glob("*/queue__*"))
    for audit in consortium.folder.rglob("audit.jsonl"):
        assert audit.read_text().count('"approved"') == 1
    assert "the next training of it is 2d, fold all" in consortium.said("bern")

    consortium.start(
        "server",
        *("nnunetv2_federated.cli.find_best_configuration", consortium.dataset),
        *("-c", "2d", "-f", "all", "--server", f"localhost:{consortium.port}", "--min-cases", "4"),
    )
    assert consortium.wait_for_server() == 0, consortium.all_said()
    (information,) = results.rglob("inference_information.json")
    best = json.loads(information.read_text())["best_model_or_ensemble"]
    (validated,) = results.glob("*/*/fold_all/validation/summary.json")
    dice = json.loads(validated.read_text())["foreground_mean"]["Dice"]
    assert best["result_on_crossval_pre_pp"] == pytest.approx(dice, abs=1e-9)
    assert best["result_on_crossval_post_pp"] >= dice
    assert Path(best["postprocessing_file"]).is_file()
    assert "takes part in choice" in consortium.said("oslo")
    assert "measured 2d on 4 cases; means leave this site" in consortium.said("oslo")
