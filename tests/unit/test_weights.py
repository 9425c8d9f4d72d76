from __future__ import annotations

import math
import random
import zipfile

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
)
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import (
    nnUNetTrainerBN,
)
from torch import nn

from nnunetv2_federated.federation.errors import CheckpointError, SiteError
from nnunetv2_federated.nnunet.training import randomness, site_state, torch_file
from nnunetv2_federated.nnunet.training.checkpoint_file import read_network_weights
from nnunetv2_federated.nnunet.training.optimizer import ServerLR
from nnunetv2_federated.nnunet.training.proximal_loss import ProximalLoss
from nnunetv2_federated.nnunet.training.trainer import (
    federate,
    nnUNetTrainerFederated,
    stock_name,
)
from nnunetv2_federated.nnunet.training.weights import (
    federated_tensors,
    load_vector,
    local_buffers,
    network_hash,
    num_values,
    to_vector,
    unwrap,
)


class Net(nn.Module):
    """As nnU-Net's: the decoder holds the encoder, a layer is reached by two paths."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))
        self.decoder = nn.Module()
        self.decoder.encoder = self.encoder
        self.decoder.head = nn.Linear(width, 2)
        self.decoder.tied = nn.Linear(width, 2, bias=False)
        self.decoder.tied.weight = self.decoder.head.weight


# conv 4*9 + 4, batch norm weight and bias 4 + 4, head 8 + 2, running mean and variance 4 + 4
NET_VALUES = 66


def randomized(seed: int) -> Net:
    torch.manual_seed(seed)
    net = Net()
    net.encoder[1].running_mean.normal_()
    net.encoder[1].running_var.uniform_(0.5, 2)
    net.encoder[1].num_batches_tracked.fill_(seed)
    return net


def test_each_tensor_is_in_the_vector_once():
    net = Net()
    assert len(net.state_dict()) == 17  # what a plain state_dict would send
    names = [name for name, _ in federated_tensors(net)]
    assert names == [
        "encoder.0.weight",
        "encoder.0.bias",
        "encoder.1.weight",
        "encoder.1.bias",
        "decoder.head.weight",
        "decoder.head.bias",
        "encoder.1.running_mean",
        "encoder.1.running_var",
    ]
    assert num_values(net) == NET_VALUES
    assert to_vector(net).shape == (NET_VALUES,)
    assert to_vector(net).dtype == np.float32


def test_counters_stay_at_the_site():
    here, there = randomized(3), randomized(9)
    assert list(local_buffers(here)) == ["encoder.1.num_batches_tracked"]
    load_vector(here, to_vector(there))
    assert here.encoder[1].num_batches_tracked == 3


def test_round_trip_is_bit_exact_and_keeps_aliases():
    here, there = randomized(3), randomized(9)
    addresses = [tensor.data_ptr() for _, tensor in federated_tensors(here)]
    vector = to_vector(there)
    load_vector(here, vector)
    assert to_vector(here).tobytes() == vector.tobytes()
    for name, tensor in here.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, there.state_dict()[name]), name
    # in place: an optimizer that holds the parameters still trains this network
    assert addresses == [tensor.data_ptr() for _, tensor in federated_tensors(here)]
    assert here.decoder.tied.weight is here.decoder.head.weight


def test_the_vector_is_a_copy():
    net = randomized(3)
    vector = to_vector(net)
    before = vector.copy()
    with torch.no_grad():
        net.encoder[0].weight.zero_()
    np.testing.assert_array_equal(vector, before)
    load_vector(net, vector)
    vector[:] = 0
    assert to_vector(net).tobytes() == before.tobytes()


def test_a_vector_from_the_network_may_be_read_only():
    net = randomized(3)
    vector = to_vector(net)
    received = np.frombuffer(vector.tobytes(), np.float32)
    load_vector(net, received)
    assert to_vector(net).tobytes() == vector.tobytes()


def test_weights_that_a_gpu_left_are_read_without_one(tmp_path):
    """torch would put them back where they were, and calls a file without its GPU unreadable."""
    path, moved = tmp_path / "cpu.pth", tmp_path / "cuda.pth"
    torch.save({"network_weights": {"w": torch.arange(3.0)}}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(moved, "w") as target:
        for item in source.infolist():
            content = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content  # a string of 3 bytes
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7")
            target.writestr(item, content)
    with pytest.raises(RuntimeError, match="deserialize"):
        torch.load(moved)
    assert read_network_weights(moved)["w"].tolist() == [0.0, 1.0, 2.0]


def test_half_precision_parameters_come_back_unchanged():
    net = randomized(3).half()
    vector = to_vector(net)
    assert vector.dtype == np.float32
    load_vector(net, vector)
    assert net.encoder[0].weight.dtype == torch.float16
    assert to_vector(net).tobytes() == vector.tobytes()


@pytest.mark.parametrize("shape", [(NET_VALUES - 1,), (NET_VALUES + 1,), (1, NET_VALUES), (0,)])
def test_a_vector_of_another_network_is_refused_before_anything_changes(shape):
    net = randomized(3)
    before = to_vector(net)
    with pytest.raises(SiteError, match=f"expected a vector of {NET_VALUES} values"):
        load_vector(net, np.ones(shape, np.float32))
    assert to_vector(net).tobytes() == before.tobytes()


def test_manifest_tells_networks_apart_but_not_their_values():
    assert network_hash(randomized(3)) == network_hash(randomized(9))
    others = [
        Net(5),
        Net().double(),
        nn.Sequential(nn.Linear(3, 5)),
        nn.Sequential(nn.Linear(5, 3)),
    ]
    hashes = {network_hash(net) for net in [Net(), *others]}
    assert len(hashes) == 5


def test_a_compiled_network_is_the_network():
    net = randomized(3)
    compiled = torch.compile(net)  # compiles on the first call only
    assert unwrap(compiled) is net
    assert network_hash(compiled) == network_hash(net)
    assert to_vector(compiled).tobytes() == to_vector(net).tobytes()


# FedProx and the learning rate of a round


def test_proximal_term_and_its_gradient_by_hand():
    net = nn.Linear(2, 1, bias=False)
    net.weight.data[:] = torch.tensor([1.0, 2.0])
    loss = ProximalLoss(nn.L1Loss(), net, mu=0.5)
    net.weight.data[:] = torch.tensor([4.0, -2.0])
    output = net(torch.tensor([[1.0, 0.0]]))  # 4
    value = loss(output, torch.tensor([[1.0]]))
    # |4 - 1| + 0.5 / 2 * (3^2 + 4^2)
    assert value.item() == pytest.approx(3 + 6.25)
    value.backward()
    # d|4 - 1| / dw = (1, 0), plus 0.5 * (3, -4)
    assert net.weight.grad.tolist() == [[2.5, -2.0]]


def test_proximal_term_is_not_part_of_validation():
    net = nn.Linear(2, 1, bias=False)
    loss = ProximalLoss(nn.L1Loss(), net, mu=0.5)
    net.weight.data += 1
    with torch.no_grad():
        assert loss(torch.tensor([[4.0]]), torch.tensor([[1.0]])).item() == 3


def test_proximal_term_leaves_frozen_parameters_out():
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(requires_grad=False)
    loss = ProximalLoss(nn.L1Loss(), net, mu=2.0)
    net.bias.data += 5
    net.weight.data += 1
    value = loss(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    assert value.item() == pytest.approx(2.0)  # 2 / 2 * (1^2 + 1^2)


def test_the_server_sets_the_learning_rate_of_every_group():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights], 0.5)
    scheduler = ServerLR(optimizer, 0.01)
    for epoch in (0, 1, 700):  # whatever nnU-Net's epoch counter says
        scheduler.step(epoch)
        assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    scheduler.lr = 0.002
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.002, 0.002]
    assert scheduler.is_kept
    scheduler.shares = (0.5, 1.0)
    assert not scheduler.is_kept
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.002]
    optimizer.param_groups[1]["lr"] = 0.003  # as a schedule by iteration would
    assert not scheduler.is_kept


# The name inference finds the network by


class LocalLoss(nnUNetTrainer):
    pass


class LocalNetwork(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*args, **kwargs):
        raise NotImplementedError


class LocalNetworkAndLoss(LocalNetwork):
    pass


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        (nnUNetTrainerFederated, "nnUNetTrainer"),
        (federate(nnUNetTrainer), "nnUNetTrainer"),
        (federate(nnUNetTrainerDA5), "nnUNetTrainerDA5"),
        (federate(nnUNetTrainerBN), "nnUNetTrainerBN"),
        (federate(LocalLoss), "nnUNetTrainer"),
        (federate(LocalNetwork), "LocalNetwork"),
        (federate(LocalNetworkAndLoss), "LocalNetworkAndLoss"),
        (type("Mine", (nnUNetTrainerFederated,), {}), "nnUNetTrainer"),
        (nnUNetTrainerDA5, "nnUNetTrainerDA5"),
    ],
)
def test_checkpoints_carry_the_nearest_stock_trainer(trainer, name):
    assert stock_name(trainer) == name


def test_federating_twice_is_federating_once():
    sibling = federate(nnUNetTrainerDA5)
    assert sibling.__name__ == "nnUNetTrainerDA5Federated"
    assert federate(sibling) is sibling
    assert issubclass(sibling, nnUNetTrainerDA5)
    assert federate(nnUNetTrainer) is nnUNetTrainerFederated


# A site's own state


def draw() -> tuple:
    return (
        random.random(),  # noqa: S311
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(1).item(),
    )


@pytest.mark.parametrize("drawn_before", [0, 1])  # after one gauss, a second one is waiting
def test_random_numbers_continue_from_the_file(tmp_path, drawn_before):
    randomness.seed_everything(7)
    for _ in range(drawn_before):
        draw()
    path = tmp_path / "state.pt"
    torch_file.save(path, {"randomness": randomness.capture_randomness()})
    expected = [draw() for _ in range(3)]
    randomness.seed_everything(8)
    assert draw() != expected[0]
    randomness.restore_randomness(torch_file.load(path)["randomness"])
    assert [draw() for _ in range(3)] == expected


def test_a_snapshot_is_not_changed_by_later_draws():
    randomness.seed_everything(7)
    snapshot = randomness.capture_randomness()
    expected = draw()
    for _ in range(2):
        randomness.restore_randomness(snapshot)
        assert draw() == expected


def damage(path, how):
    content = path.read_bytes()
    if how == "absent":
        path.unlink()
    elif how == "code":
        torch.save({"f": math.sqrt}, path)
    else:
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"x"}[how])


@pytest.mark.parametrize("how", ["absent", "empty", "half", "text", "code"])
def test_a_damaged_state_is_named(tmp_path, how):
    path = site_state.state_path(tmp_path, 3)
    torch_file.save(path, {"weights": torch.arange(1000.0)})
    damage(path, how)
    with pytest.raises(CheckpointError, match=r"after_round_3\.pt cannot be read"):
        torch_file.load(path)


def test_a_kill_while_saving_leaves_the_old_state(tmp_path):
    path = tmp_path / "state.pt"
    torch_file.save(path, {"round": 1})
    with pytest.raises(Exception, match="pickle"):
        torch_file.save(path, {"round": 2, "not to be written": lambda: None})
    assert torch_file.load(path) == {"round": 1}


def test_the_two_newest_states_are_kept(tmp_path):
    for server_round in (-1, 0, 2, 9, 10, 100):
        torch_file.save(site_state.state_path(tmp_path, server_round), {})
    (tmp_path / "after_round_7.pt.tmp").touch()
    (tmp_path / "after_round_x.pt").touch()
    assert site_state.rounds_on_disk(tmp_path) == [-1, 0, 2, 9, 10, 100]
    site_state.drop_superseded(tmp_path)
    assert site_state.rounds_on_disk(tmp_path) == [9, 10, 100]
