"""Code that plans may name, and nothing else: threats A1 and A1b, and their kind."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import resource
import sys
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.building_blocks.patch_encode_decode import LayerNormNd
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.fingerprint import CaseFingerprint, summarise_cases
from nnunetv2_federated.federation.intensities import Channel
from nnunetv2_federated.federation.package_versions import compare_packages
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.planning.allowed_arguments import REGISTER, Code
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer, definition, resolve
from nnunetv2_federated.nnunet.planning.checked_plans import check_plans
from nnunetv2_federated.nnunet.planning.memory_estimate import (
    check_preprocessing,
    check_training,
    resampled_voxels,
)
from nnunetv2_federated.nnunet.planning.planner import PlanSettings, find_planner, plan
from nnunetv2_federated.nnunet.training.packages import defining_packages

DATASET_JSON = {
    "channel_names": {"0": "image"},
    "labels": {"background": 0, "one": 1},
    "file_ending": ".png",
}
UNET = "dynamic_network_architectures.architectures.unet"
PRIMUS = "dynamic_network_architectures.architectures.primus"
PARTS = {
    "n_stages": 2,
    "features_per_stage": [4, 8],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3], [3, 3]],
    "strides": [[1, 1], [2, 2]],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": "torch.nn.Dropout2d",
    "dropout_op_kwargs": {"p": 0.1},
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
RESIDUAL = {**PARTS, "n_blocks_per_stage": [1, 1]}
TRANSFORMER = {"embed_dim": 96, "patch_embed_size": [8, 8, 8], "input_shape": [16, 16, 16]}
ARGUMENTS: dict[str, dict[str, Any]] = {
    f"{UNET}.PlainConvUNet": {
        **PARTS,
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
    },
    f"{UNET}.ResidualEncoderUNet": {**RESIDUAL, "n_conv_per_stage_decoder": [1]},
    f"{UNET}.ResidualUNet": {**RESIDUAL, "n_conv_per_stage_decoder": [1]},
    f"{PRIMUS}.Primus": TRANSFORMER,
    f"{PRIMUS}.PrimusV2": TRANSFORMER,
    f"{PRIMUS}.PrimusV3": TRANSFORMER,
    "nnunetv2_cls.network.timm_classifier": {"model_name": "resnet18"},
    "nnunetv2_cls.network.ResidualEncoderClassifier": RESIDUAL,
}
"""Arguments that each registered network takes."""
SLOTS = {"norm": "norm_op", "dropout": "dropout_op", "nonlin": "nonlin"}
"""Where a network takes a part of this kind."""


def architecture(network: str = f"{UNET}.PlainConvUNet", **changes: Any) -> dict[str, Any]:
    arguments = {**ARGUMENTS.get(network, {}), **changes}
    code = [n for n in ("conv_op", "norm_op", "dropout_op", "nonlin") if n in arguments]
    return {
        "network_class_name": network,
        "arch_kwargs": arguments,
        "_kw_requires_import": code,
    }


def make_plans(content: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64, 64],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3},
        "architecture": content or architecture(),
        **changes,
    }
    return {
        "dataset_name": "Dataset001_Any",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
    }


def check(plans: dict[str, Any], allowed_modules: tuple[str, ...] = ()) -> None:
    check_plans(plans, DATASET_JSON, "bern", allowed_modules)


def train(plans: dict[str, Any], trainer: str = "nnUNetTrainer", **options: Any) -> Any:
    dataset = Dataset("Dataset001_Any", Path("absent"), plans, DATASET_JSON)
    return check_training(dataset, "2d", trainer, "bern", **options)


# Attacks that ran


def test_a_command_named_as_nonlinearity_runs_in_nnunet_and_is_refused_here(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    attack = architecture(
        nonlin="torch.nn.parallel.distributed.os.system",
        nonlin_kwargs={"command": f"touch {mark}"},
    )
    with pytest.raises(TypeError):  # what the command returns is no module, when it has run
        get_network_from_plans(*attack.values(), 1, 2)
    assert mark.exists()
    mark.unlink()

    with pytest.raises(SiteError) as error:
        train(make_plans(attack))

    assert str(error.value).startswith(
        "site bern: refused plans: configurations.2d.architecture.nonlin: "
        "'torch.nn.parallel.distributed.os.system' is not an allowed nonlin; allowed is ReLU, "
    )
    assert not mark.exists()


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    "argument",
    ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"],
)
def test_a_classifier_gets_no_checkpoint(argument: str, tmp_path: Path) -> None:
    mark, bomb = tmp_path / "ran", tmp_path / "model.pth"
    bomb.write_bytes(pickle.dumps(_Bomb(mark)))
    attack = architecture("nnunetv2_cls.network.timm_classifier", **{argument: str(bomb)})

    with pytest.raises(SiteError, match=f"{argument} is not an allowed argument; allowed is model"):
        train(make_plans(attack), "nnUNetTrainerCls")

    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.hub.load",
        "nnunetv2_cls.pretrained.main",
        "nnunetv2_cls.network.timm.create_model",
        "nnunetv2_cls.network.batch_to_group_norm",
        "torch.nn.Module",
        "torch.nn.Sequential",
        "torch.nn.modules.conv.torch.hub.load",
        "torch.nn.Conv2d.__init__.__globals__",
        "torch..nn.Conv2d",
        "torch.nn.functional.relu",
        "torch.nn.parallel.DistributedDataParallel",
        "dynamic_network_architectures.architectures.gone.nn",
        "dynamic_network_architectures.architectures.gone.torch",
        "dynamic_network_architectures.architectures.gone.rearrange",
        "dynamic_network_architectures.architectures.unet.test_submodules_loadable",
        "dynamic_network_architectures.building_blocks.eva.Eva",
        "torch.nn",
        "\x1b[31mtorch.nn.ReLU",
        "torch.nn.ReLU\n",
        "",
        7,
        None,
        ["torch.nn.ReLU"],
    ],
)
def test_what_is_no_network_or_part_is_refused_as_each(name: object) -> None:
    for kind in ("network", "conv", "norm", "dropout", "block"):
        with pytest.raises(SettingsError, match=f"not an allowed {kind}; allowed is") as error:
            resolve(kind, name)
        assert str(error.value).isprintable()
    with pytest.raises(SiteError, match=r"configurations\.2d\.architecture"):
        check(make_plans(architecture() | {"network_class_name": name}))


def test_resolving_imports_nothing_that_a_name_says(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("raise RuntimeError('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        for name in ("planted.Network", "torch.nn.planted.Network", "planted"):
            with pytest.raises(SettingsError):
                resolve("network", name)
    finally:
        sys.path.remove(str(tmp_path))
    before = set(sys.modules)
    for name in ("idlelib.idle.main", "dynamic_network_architectures.architectures.idlelib.idle"):
        with pytest.raises(SettingsError):
            resolve("network", name)
    assert not {name for name in set(sys.modules) - before if "idlelib" in name}


@pytest.mark.parametrize("name", ["np", "join", "Pool", "Path", "torch", "os", "__builtins__"])
@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("image_reader_writer", "reader/writer"),
        ("label_manager", "label manager"),
        ("experiment_planner_used", "planner"),
        ("preprocessor_name", "preprocessor"),
        ("normalization_schemes", "normalization scheme"),
        ("resampling_fn_data", "resampling function"),
    ],
)
def test_what_a_module_of_nnunet_merely_holds_is_refused(name: str, key: str, kind: str) -> None:
    plans = make_plans()
    where = plans if key in plans else plans["configurations"]["2d"]
    where[key] = [name] if key == "normalization_schemes" else name
    with pytest.raises(SiteError, match=rf"{key}: '{name}' is not an allowed {kind}"):
        check(plans)


def test_a_dataset_json_cannot_name_foreign_code() -> None:
    for name in ("np", "os.system", "BaseReaderWriter", None, 3):
        attack = {**DATASET_JSON, "overwrite_image_reader_writer": name}
        with pytest.raises(SiteError, match=r"overwrite_image_reader_writer of dataset.json: "):
            check_plans(make_plans(), attack, "bern")
    check_plans(make_plans(), {**DATASET_JSON, "overwrite_image_reader_writer": "None"}, "bern")
    check_plans(
        make_plans(), {**DATASET_JSON, "overwrite_image_reader_writer": "NibabelIO"}, "bern"
    )


# Everything there is


def _reachable(roots: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Yield every object reached from packages through modules, once, by a shortest path."""
    waiting = deque((root, importlib.import_module(root)) for root in roots)
    seen = {id(module) for _, module in waiting}
    while waiting:
        path, module = waiting.popleft()
        for name, found in list(vars(module).items()):
            if id(found) in seen or isinstance(found, (str, int, float, tuple, list, dict)):
                continue
            seen.add(id(found))
            yield f"{path}.{name}", found
            if isinstance(found, ModuleType) and path.count(".") < 5:
                waiting.append((f"{path}.{name}", found))


def _is_of_kind(kind: str, found: object) -> bool:
    """Say independently of the register what a kind is."""
    if kind == "network" and inspect.isfunction(found):
        return found.__module__ == "nnunetv2_cls.network" and found.__name__ == "timm_classifier"
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        return False
    module = found.__module__
    return {
        "network": module in (UNET, PRIMUS, "nnunetv2_cls.network"),
        "conv": issubclass(found, _ConvNd) and module == "torch.nn.modules.conv",
        "norm": issubclass(found, (_NormBase, LayerNormNd)),
        "dropout": issubclass(found, _DropoutNd) and module == "torch.nn.modules.dropout",
        "nonlin": module == "torch.nn.modules.activation",
        "block": module == "dynamic_network_architectures.building_blocks.residual",
    }[kind]


@pytest.mark.slow(15)
def test_of_all_reachable_objects_only_registered_ones_of_the_kind_are_accepted() -> None:
    kinds = [kind for kind in REGISTER if kind != "resampling function"]
    accepted: dict[str, set[str]] = {kind: set() for kind in kinds}
    tried = 0
    roots = ("torch.nn", "dynamic_network_architectures", "nnunetv2_cls.network")
    for path, found in _reachable(roots):
        tried += 1
        for kind in kinds:
            try:
                resolved = resolve(kind, path)
            except SettingsError:
                continue
            assert resolved is found, path
            assert _is_of_kind(kind, found), (path, kind)
            accepted[kind].add(definition(found))
    assert tried > 10_000  # os, sys, importlib and the like are among them
    assert all(accepted[kind] <= set(REGISTER[kind]) for kind in kinds)
    assert len(accepted["conv"]) == 3


def test_of_all_names_nnunet_would_find_only_its_own_classes_are_accepted() -> None:
    bases: dict[str, Any] = {
        "reader/writer": BaseReaderWriter,
        "preprocessor": DefaultPreprocessor,
        "normalization scheme": ImageNormalization,
        "label manager": LabelManager,
        "planner": ExperimentPlanner,
    }
    resolve("planner", "ExperimentPlanner")  # imports what nnU-Net's search imports
    packages = ("imageio", "preprocessing", "utilities.label_handling", "experiment_planning")
    names = {
        name
        for module in [m for n, m in list(sys.modules.items()) if n.startswith("nnunetv2.")]
        if module.__name__.removeprefix("nnunetv2.").startswith(packages)
        for name in vars(module)
    }
    assert {"np", "join", "NibabelIO"} <= names
    functions = set()
    for name in names:
        for kind, base in bases.items():
            try:
                found = resolve(kind, name)
            except SettingsError:
                continue
            assert issubclass(found, base), (kind, name)
            assert found.__module__.startswith("nnunetv2."), (kind, name)
            assert not inspect.isabstract(found), (kind, name)
        try:
            functions.add(resolve("resampling function", name).__name__)
        except SettingsError:
            continue
    assert functions == {
        "resample_data_or_seg_to_shape",
        "resample_torch_fornnunet",
        "no_resampling_hack",
    }


# Arguments

ATTACKS = [
    "/etc/passwd",
    "../../weights.pth",
    "weights.pth",
    "https://example.org/model.pth",
    "hf-hub:timm/resnet18",
    "local-dir:/tmp/resnet18",
    "C:\\weights.pth",
    "gASVHQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAJpZJSFlFKULg==",
    "\x80\x04\x95",
    {"file": "/etc/passwd"},
    ["/etc/passwd"],
    float("inf"),
    10**400,
    -1,
]


def _callables() -> list[Any]:
    """Every registered callable that plans can give arguments; convolutions and blocks get none."""
    return [
        pytest.param(kind, path, id=path.rpartition(".")[2])
        for kind, paths in REGISTER.items()
        for path in paths
        if kind in ("network", "resampling function", *SLOTS)
    ]


def _naming(kind: str, path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return plans in which a callable gets further arguments."""
    if kind == "network":
        return make_plans(architecture(path, **arguments))
    if kind == "resampling function":
        name = path.rpartition(".")[2]
        return make_plans(resampling_fn_seg=name, resampling_fn_seg_kwargs=arguments)
    slot = SLOTS[kind]
    return make_plans(architecture(**{slot: path, f"{slot}_kwargs": arguments}))


def _says(argument: str, attack: object) -> str:
    return "a number is too large" if attack == 10**400 else argument.removesuffix("_kwargs")


@pytest.mark.parametrize(("kind", "path"), _callables())
def test_no_argument_takes_a_path_a_url_or_a_pickle(kind: str, path: str) -> None:
    for argument, field in REGISTER[kind][path].model_fields.items():
        for attack in ATTACKS:
            plans = _naming(kind, path, {argument: attack})
            if any(isinstance(mark, Code) for mark in field.metadata):
                imported = plans["configurations"]["2d"]["architecture"]["_kw_requires_import"]
                imported[:] = sorted({*imported, argument})
            with pytest.raises(SiteError, match=_says(argument, attack)):
                check(plans)


@pytest.mark.parametrize(("kind", "path"), _callables())
def test_an_argument_that_is_not_registered_is_refused(kind: str, path: str) -> None:
    module, _, name = path.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    check(_naming(kind, path, {}))
    for argument in {*signature, "checkpoint_path", "pretrained"} - set(
        REGISTER[kind][path].model_fields
    ):
        with pytest.raises(SiteError, match=f"{argument} is not an allowed argument"):
            check(_naming(kind, path, {argument: 1}))


def test_only_arguments_that_are_code_are_imported() -> None:
    for imported, problem in (
        (["conv_op", "norm_op", "dropout_op"], "nonlin does not fit"),
        (["conv_op", "norm_op", "dropout_op", "nonlin", "n_stages"], "n_stages does not fit"),
        (["conv_op", "norm_op", "dropout_op", "nonlin", "x"], "there is no argument x"),
        (["conv_op", "conv_op", "norm_op", "dropout_op", "nonlin"], "only once"),
        ("conv_op", "a list"),
        ([["conv_op"]], "a list"),
    ):
        with pytest.raises(SiteError, match=problem):
            check(make_plans(architecture() | {"_kw_requires_import": imported}))
    # a trainer may import what is not listed, as nnUNetTrainerBN does with conv_op
    with pytest.raises(SiteError, match="not an allowed conv"):
        check(make_plans(architecture(conv_op="os.system")))


# What is accepted

STOCK = [
    ("ExperimentPlanner", (1.0, 1.0, 1.0), (80, 96, 96)),
    ("ExperimentPlanner", (999.0, 1.0, 1.0), (1, 256, 256)),
    ("nnUNetPlanner_torchres", (3.0, 1.0, 1.0), (24, 96, 96)),
    ("ResEncUNetPlanner", (3.0, 1.0, 1.0), (24, 96, 96)),
    ("nnUNetPlannerResEncM", (1.0, 1.0, 1.0), (80, 96, 96)),
    ("nnUNetPlannerResEncL", (3.0, 1.0, 1.0), (24, 96, 96)),
    ("nnUNetPlannerResEncXL", (1.0, 1.0, 1.0), (64, 64, 64)),
    ("nnUNetPlannerResEncL_torchres", (1.0, 1.0, 1.0), (64, 64, 64)),
    ("nnUNetPlannerResEncL_torchres_sepz", (3.0, 1.0, 1.0), (24, 96, 96)),
    ("nnUNetPlannerResEncL_noResampling", (1.0, 1.0, 1.0), (64, 64, 64)),
]


@pytest.mark.parametrize(("planner", "spacing", "size"), STOCK)
def test_plans_of_stock_planners_are_accepted(
    planner: str, spacing: tuple[float, ...], size: tuple[int, ...]
) -> None:
    channel = Channel.of(np.arange(100, dtype=np.float32))
    fingerprint = summarise_cases("a", [CaseFingerprint(spacing, size, 1.0, (channel,))] * 200)
    declared = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "one": 1},
        "file_ending": ".nii.gz",
        "regions_class_order": None,
        "reader_writer": "SimpleITKIO",
    }
    plans = plan(declared, fingerprint, PlanSettings(planner))

    check_plans(plans, DATASET_JSON, "bern")
    for name in plans["configurations"]:
        dataset = Dataset("Dataset001_Any", Path("absent"), plans, DATASET_JSON)
        check_training(dataset, name, "nnUNetTrainer", "bern", limit_gb=200)
    check_preprocessing(plans, list(plans["configurations"]), (1, *size), spacing, site="bern")


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_of_before_nnunet_2_4_are_checked_as_what_nnunet_makes_of_them(network: str) -> None:
    legacy = {
        "UNet_class_name": network,
        "UNet_base_num_features": 8,
        "unet_max_num_features": 16,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "num_pool_per_axis": [1, 1],
        "pool_op_kernel_sizes": [[1, 1], [2, 2]],
        "conv_kernel_sizes": [[3, 3], [3, 3]],
    }

    def old(**changes: Any) -> dict[str, Any]:
        plans = make_plans(**{**legacy, **changes})
        del plans["configurations"]["2d"]["architecture"]
        return plans

    plans = old()
    with pytest.warns(UserWarning, match="old nnU-Net plans"):
        train(plans)
    assert plans == old()
    for key, attack in (
        ("UNet_class_name", "os.system"),
        ("UNet_base_num_features", 10**9),
        ("UNet_base_num_features", "a"),
        ("n_conv_per_stage_encoder", [1] * 10**4),
    ):
        with pytest.raises(SiteError, match=key):
            check(old(**{key: attack}))


def test_a_network_that_has_moved_is_found_as_nnunet_finds_it() -> None:
    name = "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
    assert definition(resolve("network", name)) == f"{UNET}.ResidualEncoderUNet"


def test_inheritance_is_followed_and_must_end() -> None:
    plans = make_plans()
    child = {"inherits_from": "2d", "batch_size": 3}
    plans["configurations"]["child"] = child
    check(plans)
    for parent, problem in (("child", "inherits from itself"), ("x", "the plans have no 'x'")):
        plans["configurations"]["child"] = child | {"inherits_from": parent}
        with pytest.raises(SiteError, match=problem):
            check(plans)
    plans["configurations"]["2d"]["inherits_from"] = "child"
    plans["configurations"]["child"] = child
    with pytest.raises(SiteError, match="inherits from itself"):
        check(plans)
    # what a child says is judged where it is used
    plans = make_plans()
    plans["configurations"]["child"] = child | {"normalization_schemes": ["np"]}
    with pytest.raises(SiteError, match=r"configurations.child.normalization_schemes: 'np'"):
        check(plans)


# A hospital's own code


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "bern_networks.py").write_text(
        "import os\n"
        "import torch\n"
        "from torch import nn\n"
        "class Thin(nn.Module):\n"
        "    def __init__(self, input_channels, num_classes, deep_supervision=False, **given):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(input_channels, num_classes, 1, bias=False)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x)\n"
        "class Needy(Thin):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) * float(x.sum())\n"
        "class NoNetwork:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "bern_networks"
    sys.modules.pop("bern_networks", None)


def test_a_hospitals_own_network_is_allowed_by_its_module(own_module: str) -> None:
    own = architecture(f"{own_module}.Thin", width=3, mode="big one", act="torch.nn.ReLU")
    own["_kw_requires_import"] = ["act"]
    with pytest.raises(SiteError, match="not an allowed network"):
        check(make_plans(own))
    check(make_plans(own), (own_module,))
    for name in ("NoNetwork", "os.system", "nn.Conv2d", "torch.hub.load", "absent"):
        with pytest.raises(SiteError, match="not an allowed network"):
            check(make_plans(architecture(f"{own_module}.{name}")), (own_module,))
    for argument, attack in (
        ("weights", "weights.pth"),
        ("weights", {"a": ["/etc/passwd"]}),
        ("weights", {"/etc/passwd": 1}),
        ("where", "https://example.org"),
        ("pretrained", True),
        ("checkpoint_path", 1),
        ("act", "os.system"),
        ("act", "no_resampling_hack"),  # by its bare name nnU-Net would import a module
    ):
        changed = deepcopy(own)
        changed["arch_kwargs"][argument] = attack
        with pytest.raises(SiteError, match=argument):
            check(make_plans(changed), (own_module,))


def test_memory_of_a_network_by_hand(own_module: str) -> None:
    plans = make_plans(architecture(f"{own_module}.Thin"))
    memory = train(plans, allowed_modules=(own_module,))
    # 2 weights of 4 bytes, 4 times; kept for the gradient: the input, 2 x 1 x 64 x 64 x 4 bytes
    assert memory.network == (32 + 32768) / 2**30
    # 8 batches of 2 x (1 channel + 1 target) x 64 x 64 x 4 bytes
    assert memory.data == 8 * 2 * 2 * 64 * 64 * 4 / 2**30
    halved = train(plans, allowed_modules=(own_module,), device="cuda", limit_gb=1)
    assert halved.network == (32 + 16384) / 2**30


def test_only_a_hospitals_own_network_may_be_without_an_estimate(own_module: str) -> None:
    plans = make_plans(architecture(f"{own_module}.Needy"))
    assert train(plans, allowed_modules=(own_module,)).network is None
    with pytest.raises(SiteError, match="cannot be built and run for patch 63x64"):
        train(make_plans(patch_size=[63, 64]))  # 63 is not what comes back from half of it


# Trainers


@pytest.mark.parametrize(
    "name",
    ["os.system", "np", "torch", "join", "Pool", "__name__", "\x1b[31m", "", None, 3, "a" * 10**6],
)
def test_what_is_no_trainer_is_unknown(name: object) -> None:
    with pytest.raises(SettingsError, match="is unknown") as error:
        check_trainer(name)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_trainers_of_nnunet_and_of_allowed_modules_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "BernTrainer.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class BernTrainer(nnUNetTrainer):\n"
        "    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    for name in ("nnUNetTrainer", "nnUNetTrainerFederated", "nnUNetTrainerDA5Federated"):
        assert check_trainer(name).__name__ == name.removesuffix("Federated") + "Federated"
    with pytest.raises(SettingsError, match="BernTrainer is defined in BernTrainer; allowed is"):
        check_trainer("BernTrainer")
    for name in ("BernTrainer", "BernTrainerFederated"):
        trainer = check_trainer(name, ["BernTrainer"])
        assert trainer.__name__ == "BernTrainerFederated"
    with pytest.raises(SettingsError, match="is defined in"):
        check_trainer("BernTrainer", ["Bern", "BernTrainer.part"])


def test_trainers_that_ship_with_the_package_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2_federated.cli.trainer_folder import trainer_folders  # noqa: PLC0415

    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(trainer_folders()))
    for name in ("nnUNetTrainerCls", "nnUNetTrainerClsResNet50Federated", "nnUNetTrainerFederated"):
        check_trainer(name)


# Sizes


def _three_d(**changes: Any) -> dict[str, Any]:
    content = architecture(
        conv_op="torch.nn.Conv3d",
        norm_op="torch.nn.InstanceNorm3d",
        kernel_sizes=[[3, 3, 3]] * 2,
        strides=[[1, 1, 1], [2, 2, 2]],
    )
    return make_plans(content, spacing=[1.0] * 3, **changes)


@pytest.mark.parametrize(
    ("plans", "problem"),
    [
        (_three_d(patch_size=[10**5] * 3), "patch_size"),
        (_three_d(patch_size=[8192] * 3), "a batch with patch 8192x8192x8192"),
        (make_plans(architecture(features_per_stage=[10**9] * 2)), "features_per_stage"),
        (make_plans(architecture(features_per_stage=[16384] * 2)), "the network with patch 64x64"),
        (make_plans(architecture(n_stages=10**6)), "n_stages"),
        (make_plans(architecture(n_conv_per_stage=[64] * 16)), "n_conv_per_stage"),
        (make_plans(architecture(n_conv_per_stage=10**9)), "n_conv_per_stage"),
        (make_plans(architecture(kernel_sizes=[[10**6, 3]] * 2)), "kernel_sizes"),
        (make_plans(batch_size=10**9), "batch_size"),
        (make_plans(batch_size=100_000), "a batch with patch 64x64 and batch size 100000"),
        (make_plans(spacing=[1e-12, 1]), "spacing"),
        (make_plans(architecture(f"{PRIMUS}.Primus", eva_depth=10**6)), "eva_depth"),
    ],
)
def test_what_would_not_fit_is_refused_before_it_is_made(
    plans: dict[str, Any], problem: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SiteError, match=problem):
        train(plans, limit_gb=10)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # kB


def test_the_batch_size_of_the_settings_counts() -> None:
    assert train(make_plans(), batch_size=4).data == 2 * train(make_plans()).data
    for batch_size in (10**9, 0):
        with pytest.raises(SiteError, match=f"batch size {batch_size}: must be 1 to 100000"):
            train(make_plans(), batch_size=batch_size)


def test_a_classifier_is_estimated_with_the_trainers_own_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nnunetv2_federated.cli.trainer_folder import trainer_folders  # noqa: PLC0415

    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(trainer_folders()))

    def network(model: str, trainer: str) -> float:
        content = architecture("nnunetv2_cls.network.timm_classifier", model_name=model)
        return train(make_plans(content, batch_size=32), trainer).network

    plain = network("resnet50", "nnUNetTrainerCls")
    assert network("resnet18", "nnUNetTrainerClsResNet50") == plain
    assert network("resnet18", "nnUNetTrainerCls") < plain
    assert network("regnety_002", "nnUNetTrainerCls") < plain  # computes its widths from tensors


def test_resampling_that_would_explode_is_refused() -> None:
    # z stays 10 in a 2D configuration; y: 100 * 0.5 / 0.25 = 200, x: 50 * 1 / 2 = 25
    assert resampled_voxels((10, 100, 50), (3, 0.5, 1), (0, 1, 2), (0.25, 2)) == 10 * 200 * 25
    # axes in the plans' order: x, z, y = 50, 10, 100 voxels to 100, 10, 50
    assert resampled_voxels((10, 100, 50), (1, 1, 1), (2, 0, 1), (0.5, 1, 2)) == 100 * 10 * 50
    check_preprocessing(make_plans(), ["2d"], (1, 1, 512, 512), (999, 1, 1), site="bern")
    fine = make_plans(spacing=[1e-5, 1e-5])
    with pytest.raises(SiteError, match=r"configurations.2d.spacing .* GB to resample"):
        check_preprocessing(fine, ["2d"], (1, 1, 512, 512), (999, 1, 1), site="bern")
    with pytest.raises(SiteError, match="the plans have no 'x'"):
        check_preprocessing(fine, ["x"], (1, 1, 512, 512), (999, 1, 1), site="bern")


# Anything


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "attack",
    [_nested(100_000), [0] * 200_000, "x" * 10**6, 10**400, (1,), {1: 2}, object()],
    ids=["deep", "long", "text", "number", "tuple", "key", "object"],
)
def test_what_is_no_bounded_json_is_refused(attack: Any) -> None:
    with pytest.raises(SiteError):
        check(make_plans(spacing=attack))
    with pytest.raises(SiteError):
        check(attack)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def _refusal(plans: dict[str, Any]) -> str:
    try:
        check(plans)
    except SiteError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(value=JSON, data=st.data())
def test_whatever_stands_anywhere_in_plans_is_accepted_or_refused(
    value: Any, data: st.DataObject
) -> None:
    plans = make_plans()
    where: Any = plans
    while True:
        key = data.draw(st.sampled_from(list(where) if isinstance(where, dict) else [0]))
        inner = where[key]
        if not (isinstance(inner, (dict, list)) and inner) or data.draw(st.booleans()):
            where[key] = value
            break
        where = inner
    said = _refusal(plans)
    assert said.isprintable()
    assert len(said) < 1000


# Packages and planners


def test_the_packages_that_define_a_federation_are_named() -> None:
    named = defining_packages(make_plans(), "nnUNetTrainerDA5")
    assert {"nnunetv2", "nnunetv2-federated", "torch", "timm"} <= set(named)
    assert named["torch"] == torch.__version__.partition("+")[0]
    assert compare_packages(named) == []
    other = {**named, "torch": "0.1", "bern\x1b[31m": "2", "Mine": "no package"}
    assert compare_packages(other) == [
        "Mine: belongs to no package; compare its files with the coordinator's",
        "bern [31m: not installed here, 2 at the coordinator",
        f"torch: {named['torch']} here, 0.1 at the coordinator",
    ]


@pytest.mark.parametrize("name", ["np", "os.system", "join", "nnUNetTrainer", "Pool"])
def test_a_planner_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"-pl {name}: no planner of nnU-Net"):
        find_planner(name)
