"""Whole images in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import ImageLabels
from nnunetv2_cls.loader import ImageLoader, fit_image


def test_an_image_is_scaled_to_fit_then_padded_in_the_middle() -> None:
    image = np.ones((2, 1, 4, 8), np.float32)

    fitted = fit_image(image, (6, 6))

    # 8 wide becomes 6, 4 high becomes 3; 3 rows of padding: 1 above, 2 below
    assert fitted.shape == (2, 6, 6)
    assert fitted[0].sum(1).tolist() == pytest.approx([0, 6, 6, 6, 0, 0])


def test_a_volume_is_not_cut_to_its_first_slice() -> None:
    with pytest.raises(ClsError, match="an image has 5 slices, of which a 2D configuration sees"):
        fit_image(np.ones((1, 5, 8, 8), np.float32), (8, 8))


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)

    assert np.array_equal(fit_image(image, (4, 5, 6)).numpy(), image)


class Images:
    """nnU-Net's dataset class, as far as the loader needs it: case 7 is an image of sevens."""

    def __init__(self, cases: int) -> None:
        self.identifiers = [str(i) for i in range(cases)]

    def load_case(self, case: str) -> tuple[np.ndarray, None, None, dict[str, Any]]:
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
