"""Room for the batches of augmentation workers, counted by hand."""

from __future__ import annotations

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.training.shared_memory import (
    batch_bytes,
    check_shared_memory,
    naming_shared_memory,
    queued_batches,
)


def test_bytes_of_a_batch() -> None:
    labels = LabelManager({"background": 0, "one": 1}, None)
    # 2 images of 10 x 10, 3 channels of 4 bytes, a mask of 2 bytes and a third of it more
    assert batch_bytes(2, (10, 10), 3, labels) == 200 * (12 + 3)
    regions = LabelManager({"background": 0, "a": [1, 2], "b": [2], "c": [1]}, [1, 2, 3])
    assert batch_bytes(1, (10, 10, 10), 1, regions) == 1000 * (4 + 4)


@pytest.mark.parametrize(
    ("workers", "pinned", "batches"),
    [
        (0, False, 0),
        (2, True, (6 + 1) + (3 + 1)),
        (2, False, 2 * (6 + 1) + 2 * (3 + 1)),
        (12, True, (6 + 1) + (3 + 1)),
        (32, True, (16 + 1) + (8 + 1)),
    ],
)
def test_batches_in_full_queues(workers: int, pinned: bool, batches: int) -> None:
    assert queued_batches(workers, pinned=pinned) == batches


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    assert "augmentation workers" in check_shared_memory(1, pinned=False)
    with pytest.raises(SettingsError, match=r"in /dev/shm.*nnUNet_n_proc_DA=0.*--shm-size=22528g"):
        check_shared_memory(2**40, pinned=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert "nnUNet_n_proc_DA=0" in check_shared_memory(2**40, pinned=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "two")
    with pytest.raises(SettingsError, match="nnUNet_n_proc_DA"):
        check_shared_memory(1, pinned=False)


def test_torchs_words_for_full_shared_memory_are_understood() -> None:
    with pytest.raises(OSError, match=r"shm-size.*/dev/shm"), naming_shared_memory():
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")
    with pytest.raises(RuntimeError, match="another"), naming_shared_memory():
        raise RuntimeError("another")
