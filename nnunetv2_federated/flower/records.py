"""Payloads to Flower's records and back."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.messages import WEIGHTS

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
PAYLOAD = "payload"
NUM_EXAMPLES = "num-examples"

_NPY_HEADER = 1024
"""Bytes that surely hold the header of a flat array's ``.npy`` file."""

_DTYPE_ON_THE_WAY = {"bfloat16": "uint16"}

SITE_FAILED, NOT_YET = 1, 2
"""Codes of error replies; after ``NOT_YET`` the site may be asked again."""

PHASE_SECONDS = 7 * 24 * 3600.0
"""How long the server waits for the answers of a phase."""

RUN_FOLDER_VARIABLE = "NNUNETV2_FEDERATED_RUN_FOLDER"
"""Where a runtime that cannot hand over a run configuration (Ray) finds the run."""


def pack_weights(vector: Vector, dtype: str = "float32") -> ArrayRecord:
    """One array, each tensor once; NumPy has no bfloat16, its bits travel as uint16.

    Raises
    ------
    SettingsError
        If a finite value does not fit float16.
    """
    return ArrayRecord({WEIGHTS: Array(_encode(np.ascontiguousarray(vector, np.float32), dtype))})


def _encode(vector: Vector, dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":
        bits: NDArray[Any] = torch.tensor(vector).to(torch.bfloat16).view(torch.int16).numpy()
        return bits.view(np.uint16)
    try:
        with np.errstate(over="raise"):
            return vector.astype(dtype, copy=False)
    except FloatingPointError as error:
        largest = float(np.abs(vector).max())
        raise SettingsError(
            f"--transport-dtype {dtype}: a weight of {largest:.3g} does not fit; use bfloat16."
        ) from error


def unpack_weights(content: RecordDict, dtype: str = "float32") -> Vector:
    """Return the weight vector of a message as float32, read-only where it came so.

    Raises
    ------
    SiteError
        If the message does not hold exactly one flat array of that dtype.
    """
    records = list(content.array_records.values())
    arrays = list(records[0].values()) if len(records) == 1 else []
    if len(arrays) != 1:
        raise SiteError(f"expected one array in a message, got {len(arrays)}")
    vector = _view(arrays[0].data, dtype)
    if dtype == "bfloat16":  # the upper half of float32
        return (vector.astype(np.uint32) << 16).view(np.float32)
    return vector.astype(np.float32, copy=False)


def _view(data: bytes, expected: str) -> NDArray[Any]:
    """Look at the values of an ``.npy`` file without copying them, as ``np.load`` would."""
    header = io.BytesIO(data[:_NPY_HEADER])
    try:
        np.lib.format.read_magic(header)
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
        vector = np.frombuffer(data, dtype, offset=header.tell())
    except ValueError as error:
        raise SiteError(f"its weights cannot be read: {error}") from error
    if dtype != _DTYPE_ON_THE_WAY.get(expected, expected) or len(shape) != 1:
        raise SiteError(f"expected a flat {expected} vector, got {dtype} {shape}")
    if shape != vector.shape:
        raise SiteError(f"its weights are truncated: {vector.size} of {shape[0]}")
    return vector


def pack_reply(trained: Vector, received: Vector, dtype: str) -> ArrayRecord:
    """Pack what a site trained: the weights, or in 16 bits how they differ from those received.

    A change is small, so 16 bits lose little of it; and what rounding took from the weights on
    their way down is not taken from the global model.
    """
    return pack_weights(trained if dtype == "float32" else trained - received, dtype)


def unpack_reply(content: RecordDict, sent: Vector, dtype: str) -> Vector:
    """Return the weights a site trained, from what :func:`pack_reply` made.

    Parameters
    ----------
    content
        Of the reply.
    sent
        The global model, in float32.
    dtype
        Of the federation.

    Raises
    ------
    SiteError
        If it holds no vector of that dtype and of the length of ``sent``.
    """
    vector = unpack_weights(content, dtype)
    if vector.shape != sent.shape:
        raise SiteError(f"sent {vector.size} weights instead of {sent.size}")
    return vector if dtype == "float32" else sent + vector


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
    message: Message,
    payload: str,
    weights: ArrayRecord | None = None,
    num_examples: float | None = None,
) -> Message:
    """Answer a message."""
    content = RecordDict({CONFIG: pack_payload(payload)})
    if weights is not None:
        content[ARRAYS] = weights
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
