"""The parts of a classifier, with numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nnunetv2_cls import bootstrap
from nnunetv2_cls.cam import activation_map
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inference import classify
from nnunetv2_cls.labels import ImageLabels, read_classes, read_labels
from nnunetv2_cls.loader import ImageLoader, fit_image
from nnunetv2_cls.metrics import (
    brier_score,
    calibration_error,
    choose_threshold,
    evaluate,
    predict_classes,
    score,
)
from nnunetv2_cls.network import ResidualEncoderClassifier, batch_to_group_norm, timm_classifier
from nnunetv2_cls.planning import NewConfiguration, configuration
from nnunetv2_cls.pretrained import fit_weights, read_weights
from nnunetv2_cls.trainer import left_right_axes
from nnunetv2_cls.validation import join_summaries, summarise
from nnunetv2_federated.nnunet.training.weights import (
    batchnorm_tensors,
    load_vector,
    num_values,
    to_vector,
)


def two_classes(*positive: float) -> np.ndarray:
    return np.array([[1 - p, p] for p in positive])


def test_metrics_by_hand() -> None:
    targets = np.array([0, 0, 0, 1, 1])
    found = score(targets, two_classes(0.1, 0.4, 0.8, 0.7, 0.9), 0.5)

    # of 6 pairs (positive, negative) one is in the wrong order: 0.7 < 0.8
    assert found["AUROC"] == pytest.approx(5 / 6)
    # from the top: 0.9 hit, 0.8 miss, 0.7 hit: 1/2 * 1 + 1/2 * 2/3
    assert found["average_precision"] == pytest.approx(5 / 6)
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["sensitivity"] == 1
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(5 / 6)
    assert found["F1"] == pytest.approx(4 / 5)  # 2 tp / (2 tp + 1 fp)
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.64 + 0.09 + 0.01) / 5)


def test_the_threshold_counts() -> None:
    found = score(np.array([0, 1]), two_classes(0.3, 0.4), 0.35)

    assert (found["accuracy"], found["sensitivity"], found["specificity"]) == (1, 1, 1)


def test_metrics_of_three_classes_by_hand() -> None:
    targets = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [0.5, 0.1, 0.4]])

    found = score(targets, probabilities, 0.5)

    assert found["accuracy"] == 3 / 4
    assert found["sensitivity"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["specificity"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found["F1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert found["AUROC"] == 1  # each class ranks its own cases first


def test_a_class_that_is_absent_has_no_auroc() -> None:
    found = score(np.array([1, 1]), two_classes(0.4, 0.6), 0.5)

    assert np.isnan(found["AUROC"])
    assert np.isnan(found["specificity"])
    assert found["accuracy"] == 0.5


def test_calibration_error_by_hand() -> None:
    # two of four right at confidence 0.9: |0.5 - 0.9|; one case, right, at 0.6: |1 - 0.6|
    probabilities = two_classes(0.9, 0.9, 0.9, 0.9, 0.6)
    targets = np.array([1, 1, 0, 0, 1])

    assert calibration_error(targets, probabilities) == pytest.approx(0.8 * 0.4 + 0.2 * 0.4)


def test_brier_of_several_classes_is_the_sum_over_classes() -> None:
    assert brier_score(np.array([2]), np.array([[0.2, 0.3, 0.5]])) == pytest.approx(
        0.04 + 0.09 + 0.25
    )


def test_the_threshold_lies_between_the_scores_it_separates() -> None:
    assert choose_threshold(np.array([0, 0, 1, 1]), two_classes(0.1, 0.6, 0.8, 0.9)) == (
        pytest.approx(0.7)
    )
    assert choose_threshold(np.array([1, 1]), two_classes(0.1, 0.6)) == 0.5


def test_intervals_hold_the_metric_and_shrink_with_cases() -> None:
    rng = np.random.default_rng(0)

    def width(cases: int) -> float:
        targets = np.arange(cases) % 2
        probabilities = two_classes(*np.clip(targets * 0.3 + rng.uniform(0, 0.7, cases), 0, 1))
        judged = evaluate(targets, probabilities, ("a", "b"), 0.5, resamples=100)
        low, high = judged["intervals"]["AUROC"]
        assert low <= judged["metrics"]["AUROC"] <= high
        return high - low

    assert width(400) < width(20)


def test_resamples_at_once_score_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(5)
    for classes in (2, 3):
        targets = rng.integers(0, classes, 40)
        raw = rng.integers(1, 5, (40, classes)).astype(float)  # many ties
        probabilities = raw / raw.sum(1, keepdims=True)
        predicted = predict_classes(probabilities, 0.4)
        weights = rng.integers(0, 3, (6, 40)).astype(float)
        weights[0] = 1  # the cases themselves
        weights[1] = targets == 1  # one class only
        weights[2] = targets != 1

        found = bootstrap.scores(targets, probabilities, predicted, weights, 15)

        for i, times in enumerate(weights.astype(int)):
            cases = np.repeat(np.arange(40), times)
            expected = score(targets[cases], probabilities[cases], 0.4)
            for name, value in expected.items():
                assert found[name][i] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_a_resample_draws_patients_with_all_their_images() -> None:
    targets = np.array([0, 0, 0, 1, 1, 1, 0])
    patients = [7, 7, 2, 5, 5, 3, 3]  # 3 counts to class 0: as many images, and the lower index

    (weights,) = bootstrap.draw(targets, 200, 0, patients)

    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, 5] == weights[:, 6]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 5] == 3).all()  # three patients of class 0
    assert (weights[:, 3] == 1).all()  # one patient of class 1
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.2)


def test_intervals_are_wider_when_images_come_in_pairs_of_a_patient() -> None:
    rng = np.random.default_rng(3)
    targets = np.repeat(np.arange(30) % 2, 2)
    scores = np.repeat(np.clip(0.3 * targets[::2] + rng.uniform(0, 0.7, 30), 0, 1), 2)

    def width(patients: list[int] | None) -> float:
        judged = evaluate(targets, two_classes(*scores), ("a", "b"), 0.5, patients=patients)
        assert judged["resampled"] == ("patients" if patients else "cases")
        low, high = judged["intervals"]["AUROC"]
        return high - low

    # the second image of a patient tells nothing new: as wide as with half of the images
    assert width([i // 2 for i in range(60)]) > 1.2 * width(None)


def test_an_absent_class_leaves_the_others_judged() -> None:
    targets = np.array([0, 0, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.3, 0.6], [0.3, 0.0, 0.7]])

    judged = evaluate(targets, probabilities, ("a", "b", "c"), 0.5, resamples=10)

    # a against c: of 4 pairs 3 are in order by the score of a, 3.5 by that of c
    assert judged["per_class"]["a"]["AUROC"] == 0.75
    assert judged["per_class"]["b"] == {
        "precision": None,  # never predicted
        "sensitivity": None,
        "F1": None,
        "AUROC": None,
        "cases": 0,
    }
    assert judged["per_class"]["c"]["AUROC"] == 0.875
    assert judged["metrics"]["AUROC"] == pytest.approx((0.75 + 0.875) / 2)
    json.dumps(judged, allow_nan=False)


def test_one_class_alone_is_judged_without_nan() -> None:
    summary = summarise({"x": 0, "y": 0}, {"x": [0.9, 0.1], "y": [0.4, 0.6]}, ("a", "b"))

    assert summary["threshold"] == 0.5
    assert summary["foreground_mean"]["AUROC"] is None
    assert summary["foreground_mean"]["accuracy"] == 0.5
    json.dumps(summary, allow_nan=False)


def test_a_site_without_validation_case_has_a_summary() -> None:
    nothing = summarise({}, {}, ("a", "b"))
    one = summarise({"x": 0, "y": 1}, {"x": [0.9, 0.1], "y": [0.2, 0.8]}, ("a", "b"))

    assert nothing["cases"] == 0
    assert set(nothing["metrics"].values()) == set(nothing["intervals"].values()) == {None}
    assert nothing["metrics"].keys() == one["metrics"].keys()
    assert join_summaries([nothing, one])["metrics"] == one["metrics"]
    json.dumps(nothing, allow_nan=False)


def test_joined_summaries_keep_the_patients_of_datasets_apart() -> None:
    names = ("a", "b")
    shown = {"x": [0.9, 0.1], "y": [0.2, 0.8], "z": [0.7, 0.3]}
    one = summarise({"x": 0, "y": 1, "z": 0}, shown, names, patients=[0, 1, 0])
    two = summarise({"x": 0, "y": 1, "z": 0}, shown, names)  # nothing known: each its own

    joined = join_summaries([one, two])

    assert joined["resampled"] == "patients"
    assert [row["patient"] for row in joined["metric_per_case"]] == [0, 1, 0, 2, 3, 4]


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    judged = evaluate(np.array([0, 0, 1]), two_classes(0.9, 0.1, 0.9), ("a", "b"), 0.5, resamples=2)

    assert judged["confusion_matrix"] == [[1, 1], [0, 1]]
    assert judged["per_class"]["b"] == {
        "precision": 0.5,
        "sensitivity": 1.0,
        "F1": pytest.approx(2 / 3),
        "AUROC": 0.75,  # of the pairs one is in order and one is equal
        "cases": 1,
    }


def test_joined_summaries_choose_one_threshold_for_all() -> None:
    one = summarise({"x": 0, "y": 1}, {"x": [0.9, 0.1], "y": [0.8, 0.2]}, ("a", "b"))
    two = summarise({"x": 0, "y": 1}, {"x": [0.9, 0.1], "y": [0.2, 0.8]}, ("a", "b"))

    joined = join_summaries([one, two])

    assert joined["cases"] == 4
    assert joined["threshold"] == pytest.approx(0.15)
    assert joined["foreground_mean"]["AUROC"] == 1


def test_an_image_is_scaled_to_fit_then_padded_in_the_middle() -> None:
    image = np.ones((2, 1, 4, 8), np.float32)

    fitted = fit_image(image, (6, 6))

    # 8 wide becomes 6, 4 high becomes 3; 3 rows of padding: 1 above, 2 below
    assert fitted.shape == (2, 6, 6)
    assert fitted[0].sum(1).tolist() == pytest.approx([0, 6, 6, 6, 0, 0])


def test_a_volume_is_not_cut_to_its_first_slice() -> None:
    with pytest.raises(ClsError, match="an image has 5 slices, of which a 2D configuration sees"):
        fit_image(np.ones((1, 5, 8, 8), np.float32), (8, 8))


@pytest.mark.parametrize(
    ("transpose_forward", "dimensions", "expected"),
    [
        ([0, 1, 2], 2, (1,)),
        ([0, 1, 2], 3, (2,)),
        ([2, 0, 1], 3, (0,)),  # sagittal: x has the largest spacing
        ([1, 0, 2], 3, (2,)),
        ([0, 2, 1], 2, (0,)),
        ([2, 0, 1], 2, ()),  # x is the axis that a 2D configuration does not see
    ],
)
def test_the_mirrored_axis_is_x_of_the_file(
    transpose_forward: list[int], dimensions: int, expected: tuple[int, ...]
) -> None:
    assert left_right_axes(transpose_forward, dimensions) == expected


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)

    assert np.array_equal(fit_image(image, (4, 5, 6)).numpy(), image)


class Images:
    """nnU-Net's dataset class, as far as the loader needs it: case 7 is an image of sevens."""

    def __init__(self, cases: int) -> None:
        self.identifiers = [str(i) for i in range(cases)]

    def load_case(self, case: str) -> tuple[np.ndarray, None, None, dict]:
        return np.full((1, 1, 4, 4), float(case), np.float32), None, None, {}


def loader(cases: int, batch: int, **options: bool) -> ImageLoader:
    labels = ImageLabels(("a", "b"), {str(i): int(i % 4 == 0) for i in range(cases)})
    return ImageLoader(Images(cases), labels, batch, (4, 4), None, **options)


def test_images_and_labels_stay_together() -> None:
    batches = loader(10, 4, shuffle=True)
    for _ in range(20):
        batch = next(batches)
        for image, target, key in zip(batch["data"], batch["target"], batch["keys"], strict=True):
            assert image.unique().tolist() == [float(key)]
            assert target == int(int(key) % 4 == 0)


def test_training_passes_through_all_cases_before_any_comes_again() -> None:
    batches = loader(10, 4, shuffle=True)
    drawn = [key for _ in range(5) for key in next(batches)["keys"]]

    assert len(drawn) == 20
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == [str(i) for i in range(10)]
    assert drawn[:10] != drawn[10:]


def test_validation_goes_in_order_with_a_smaller_last_batch() -> None:
    batches = loader(10, 4, shuffle=False)
    keys = [next(batches)["keys"] for _ in range(4)]

    assert keys == [list("0123"), list("4567"), list("89"), list("0123")]
    batches.restart()
    assert next(batches)["keys"] == list("0123")


def test_balanced_sampling_draws_the_rare_class_as_often() -> None:
    np.random.seed(0)
    batches = loader(100, 50, shuffle=True, balanced=True)
    positives = np.mean([next(batches)["target"].float().mean().item() for _ in range(40)])

    assert positives == pytest.approx(0.5, abs=0.03)  # a quarter of the cases are positive


def test_workers_share_a_pass() -> None:
    drawn = []
    for worker in range(2):
        labels = ImageLabels(("a", "b"), {str(i): 0 for i in range(9)})
        batches = ImageLoader(Images(9), labels, 1, (4, 4), None, shuffle=True, workers=2)
        batches.set_thread_id(worker)
        drawn += [next(batches)["keys"][0] for _ in range(5 if worker == 0 else 4)]

    assert sorted(drawn) == [str(i) for i in range(9)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_timm_classifier_takes_the_datasets_channels(channels: int) -> None:
    network = timm_classifier(channels, 3, "resnet18")

    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 3)


def test_batch_norm_becomes_group_norm_everywhere() -> None:
    network = batch_to_group_norm(
        nn.Sequential(nn.BatchNorm2d(48), nn.Sequential(nn.BatchNorm3d(6)))
    )

    assert isinstance(network[0], nn.GroupNorm)
    assert network[0].num_groups == 24  # the largest divisor of 48 up to 32
    assert network[1][0].num_groups == 6
    for model in ("resnet18", "densenet121"):  # norm alone, and norm with activation in one
        converted = timm_classifier(1, 2, model, norm="group").eval()
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in converted.modules())
        assert converted(torch.zeros(2, 1, 32, 32)).isfinite().all()


def test_a_3d_classifier_is_nnunets_residual_encoder() -> None:
    network = ResidualEncoderClassifier(
        1,
        4,
        n_stages=2,
        features_per_stage=[4, 8],
        conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * 2,
        strides=[[1, 1, 1], [2, 2, 2]],
        n_blocks_per_stage=[1, 1],
    )

    assert network(torch.zeros(2, 1, 8, 8, 8)).shape == (2, 4)


def test_mirroring_averages_probabilities() -> None:
    class LeftHalf(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            left = images[..., :2].flatten(1).mean(1)
            return torch.stack([torch.zeros_like(left), left], 1)

    image = torch.zeros(1, 1, 4, 4)
    image[..., :2] = np.log(3)  # left: probability 3/4; right, seen mirrored: 1/2

    plain, mirrored = (classify(LeftHalf(), image, axes)[0, 1] for axes in ((), (1,)))

    assert plain == pytest.approx(0.75)
    assert mirrored == pytest.approx((0.75 + 0.5) / 2)


def test_local_batch_norm_is_kept_and_the_rest_replaced() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    names = set(batchnorm_tensors(network))
    assert names == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}

    load_vector(network, np.full(num_values(network), 7, np.float32), keep=names)

    state = network.state_dict()
    assert state["1.weight"].tolist() == [1, 1, 1]
    assert state["1.running_mean"].tolist() == [0, 0, 0]
    assert state["0.weight"].unique().tolist() == [7]
    assert state["1.num_batches_tracked"] == 0
    assert to_vector(network).size == 12 + 6 + 4 + 6  # no counter in it


PLANS = {
    "configurations": {
        "2d": {"patch_size": [40, 32], "median_image_size_in_voxels": [36.0, 30.0]},
        "3d_fullres": {
            "patch_size": [8, 16, 16],
            "median_image_size_in_voxels": [10.0, 20.0, 20.0],
            "architecture": {
                "arch_kwargs": {
                    "n_stages": 3,
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "n_conv_per_stage_decoder": [2, 2],
                }
            },
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    }
}


def test_the_2d_configuration() -> None:
    assert configuration(PLANS, NewConfiguration(model="resnet34")) == {
        "inherits_from": "2d",
        "patch_size": [36, 30],
        "batch_size": 32,
        "architecture": {
            "network_class_name": "nnunetv2_cls.network.timm_classifier",
            "arch_kwargs": {"model_name": "resnet34", "norm": "batch"},
            "_kw_requires_import": [],
        },
    }


def test_the_3d_configuration_takes_the_encoder_of_the_plans() -> None:
    planned = configuration(PLANS, NewConfiguration(parent="3d_fullres", size=(8, 16, 16)))

    assert planned["patch_size"] == [8, 16, 16]
    kwargs = planned["architecture"]["arch_kwargs"]
    assert kwargs == {
        "n_stages": 3,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "n_blocks_per_stage": (1, 3, 4),
    }
    assert planned["architecture"]["_kw_requires_import"] == ["conv_op"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (NewConfiguration(parent="3d_lowres"), "-c 3d_lowres: the plans have 2d, 3d_fullres"),
        (NewConfiguration(size=(64, 64, 64)), "--size 64 64 64: give 2 numbers"),
        (NewConfiguration(size=(4, 4)), "--size 4 4"),
        (NewConfiguration(batch_size=1), "--batch-size 1"),
        (NewConfiguration(model="resnet17"), "--model resnet17: timm has no such model"),
        (NewConfiguration(norm="layer"), "--norm layer"),
    ],
)
def test_a_bad_plan_is_one_line(wanted: NewConfiguration, message: str) -> None:
    with pytest.raises(ClsError, match=message):
        configuration(PLANS, wanted)


@pytest.mark.parametrize(
    "classes", [None, {}, {"a": 0}, {"a": 0, "b": 2}, {"a": 1, "b": 1}, ["a", "b"]]
)
def test_bad_classes_are_refused(classes: object) -> None:
    with pytest.raises(ClsError, match=r"classes in dataset\.json"):
        read_classes({"classes": classes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read"),
        ("[]", "expected"),
        ('{"x": 2}', "x has the class 2"),
        ('{"x": "a"}', "x has the class 'a'"),
        ('{"x": true}', "x has the class True"),
    ],
)
def test_bad_labels_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labelsTr.json"
    path.write_text(content)
    with pytest.raises(ClsError, match=message):
        read_labels(path, ("a", "b"))


def test_labels_and_images_must_match() -> None:
    labels = ImageLabels(("a", "b"), json.loads('{"x": 0, "y": 1}'))

    labels.check(["x", "y"])
    with pytest.raises(ClsError, match=r"1 images without label \(z"):
        labels.check(["x", "y", "z"])
    with pytest.raises(ClsError, match=r"1 labels without image \(y"):
        labels.check(["x"])
    of_a_federation = ImageLabels(("a", "b", "c"), labels.of_case)
    of_a_federation.check(["x", "y"])  # another site has c
    assert of_a_federation.absent == ["c"]


def test_torchvision_weights_fit_a_grey_network(tmp_path: Path) -> None:
    colour = torchvision.models.resnet18(num_classes=1000)
    torch.save(colour.state_dict(), tmp_path / "resnet18.pth")
    network = timm_classifier(1, 2, "resnet18")

    network.load_state_dict(fit_weights(network, read_weights(str(tmp_path / "resnet18.pth"))))

    # a grey pixel is the same value in each of R, G and B: the sum of their weights
    assert torch.allclose(network.conv1.weight, colour.conv1.weight.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(network.layer4[1].conv2.weight, colour.layer4[1].conv2.weight)
    assert network.fc.weight.shape == (2, 512)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnet34", "the weights lack layer1.2"),
        ("resnet50", "of another architecture"),
        ("vgg11", "the weights lack"),
    ],
)
def test_weights_of_another_architecture_are_refused(network: str, message: str) -> None:
    with pytest.raises(ClsError, match=message):
        fit_weights(timm_classifier(1, 2, network), torchvision.models.resnet18().state_dict())


def test_a_smaller_network_than_the_weights_is_refused() -> None:
    with pytest.raises(ClsError, match=r"has no layer1\.2"):
        fit_weights(timm_classifier(1, 2, "resnet18"), torchvision.models.resnet34().state_dict())


def test_weights_that_are_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.pth").write_text("no weights")
    with pytest.raises(ClsError, match="cannot be read as weights"):
        read_weights(str(tmp_path / "no.pth"))
    with pytest.raises(ClsError, match="no such file, and no model of timm"):
        read_weights(str(tmp_path / "none.pth"))


def test_the_activation_map_shows_where_the_evidence_is() -> None:
    class Brightness(nn.Module):
        """Evidence for class 1 is brightness: one feature, the image at half size."""

        feature_info = ({"module": "features"},)

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.AvgPool2d(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = self.features(images).mean((1, 2, 3))
            return torch.stack([-bright, bright], 1)

    image = torch.zeros(1, 1, 16, 16)
    image[..., :8, 8:] = 1

    found = activation_map(Brightness(), image, 1)

    assert found.shape == (16, 16)
    assert found.max() == 1
    assert found[:6, 10:].min() == 1  # the bright quarter
    assert found[10:].max() == 0
    assert activation_map(Brightness(), image, 0).max() == 0
