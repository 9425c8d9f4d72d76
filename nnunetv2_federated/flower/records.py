"""Payloads to Flower's records and back."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.messages import WEIGHTS

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
PAYLOAD = "payload"
NUM_EXAMPLES = "num-examples"

_NPY_HEADER = 1024
"""Bytes that surely hold the header of a flat array's ``.npy`` file."""

PHASE_SECONDS = 7 * 24 * 3600.0
"""How long the server waits for the answers of a phase."""

RUN_FOLDER_VARIABLE = "NNUNETV2_FEDERATED_RUN_FOLDER"
"""Where a runtime that cannot hand over a run configuration (Ray) finds the run."""


def pack_weights(vector: Vector) -> ArrayRecord:
    """One array, each tensor once."""
    return ArrayRecord({WEIGHTS: Array(np.ascontiguousarray(vector, np.float32))})


def unpack_weights(content: RecordDict) -> Vector:
    """Return the weight vector of a message, read-only.

    Raises
    ------
    SiteError
        If the message does not hold exactly one flat float32 array.
    """
    records = list(content.array_records.values())
    arrays = list(records[0].values()) if len(records) == 1 else []
    if len(arrays) != 1:
        raise SiteError(f"expected one array in a message, got {len(arrays)}")
    return _view(arrays[0].data)


def _view(data: bytes) -> Vector:
    """Look at the values of an ``.npy`` file without copying them, as ``np.load`` would."""
    header = io.BytesIO(data[:_NPY_HEADER])
    try:
        np.lib.format.read_magic(header)
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        vector = np.frombuffer(data, dtype, offset=header.tell())
    except ValueError as error:
        raise SiteError(f"its weights cannot be read: {error}") from error
    if dtype != np.float32 or shape != vector.shape:
        raise SiteError(f"expected a flat float32 vector, got {dtype} {shape}")
    return vector


def pack_payload(text: str) -> ConfigRecord:
    """Nested values do not fit Flower's records; JSON text does."""
    return ConfigRecord({PAYLOAD: text})


def unpack_payload(content: RecordDict) -> str:
    """Return the JSON text of a message.

    Raises
    ------
    SiteError
        If there is none.
    """
    text = content.config_records.get(CONFIG, ConfigRecord()).get(PAYLOAD)
    if not isinstance(text, str):
        raise SiteError("a message without payload")
    return text


def reply(
    message: Message, payload: str, vector: Vector | None = None, num_examples: float | None = None
) -> Message:
    """Answer a message."""
    content = RecordDict({CONFIG: pack_payload(payload)})
    if vector is not None:
        content[ARRAYS] = pack_weights(vector)
    if num_examples is not None:
        content[METRICS] = MetricRecord({NUM_EXAMPLES: num_examples})
    return Message(content, reply_to=message)


def num_bytes(content: RecordDict) -> int:
    """Bytes of a message's arrays and payload."""
    arrays = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    texts = sum(
        len(value.encode())
        for record in content.config_records.values()
        for value in record.values()
        if isinstance(value, str)
    )
    return arrays + texts


def run_folder(context: Context) -> Path:
    """Return the folder of the run, from Flower's run configuration or the environment.

    Raises
    ------
    SettingsError
        If neither names one.
    """
    folder = context.run_config.get("run-folder") or os.environ.get(RUN_FOLDER_VARIABLE)
    if not folder:
        raise SettingsError(
            "run-folder is empty: prepare the run with nnUNetv2_train_federated --prepare-only, "
            "which prints the flwr run command."
        )
    return Path(str(folder))
