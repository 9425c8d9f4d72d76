"""Payloads to Flower's records and back."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from nnunetv2_federated.federation.aggregation import Vector, is_finite
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.files import format_problem
from nnunetv2_federated.federation.messages import WEIGHTS, WIRE_FORMAT
from nnunetv2_federated.federation.text import clean

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
PAYLOAD, FORMAT = "payload", "format"
NUM_EXAMPLES = "num-examples"

_NPY_START = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,12}),\), \} *\n"
)
"""Header of a flat array as NumPy writes it; nothing else is read, and nothing is evaluated."""

_ON_THE_WAY = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}

SITE_FAILED, NOT_YET = 1, 2
"""Codes of error replies; after ``NOT_YET`` the site may be asked again."""

_RECORDS = (ARRAYS, CONFIG)
"""Names of the records a message may hold."""

RUN_FOLDER_VARIABLE = "NNUNETV2_FEDERATED_RUN_FOLDER"
"""Where a runtime that cannot hand over a run configuration (Ray) finds the run."""


def pack_weights(vector: Vector, dtype: str = "float32") -> ArrayRecord:
    """Pack a vector as the one array of a message; bfloat16, unknown to NumPy, travels as uint16.

    Parameters
    ----------
    vector
        Weights: float32, shape (parameters,).
    dtype
        Type of the weights on their way, one of ``settings.TRANSPORT_DTYPES``.

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
    with reading("its weights"):
        vector = _view(only_array(content).data, dtype)
        if dtype == "bfloat16":  # the upper half of float32
            return (vector.astype(np.uint32) << 16).view(np.float32)
        return vector.astype(np.float32, copy=False)


def only_array(content: RecordDict) -> Array:
    """Return the one array of a message.

    Raises
    ------
    SiteError
        If there is none, or more than one.
    """
    arrays = [array for record in content.array_records.values() for array in record.values()]
    if len(arrays) != 1:
        raise SiteError(f"expected one array in a message, got {len(arrays)}")
    return arrays[0]


def _view(data: bytes, expected: str) -> NDArray[Any]:
    """Look at the values of a flat ``.npy`` file without copying them."""
    length = int.from_bytes(data[len(_NPY_START) : len(_NPY_START) + 2], "little")
    start = len(_NPY_START) + 2 + length
    header = _NPY_HEADER.fullmatch(data[len(_NPY_START) + 2 : start])
    if not data.startswith(_NPY_START) or header is None:
        raise SiteError("its weights cannot be read: not one flat array")
    dtype, count = header[1].decode(), int(header[2])
    if dtype != _ON_THE_WAY[expected]:
        raise SiteError(f"expected a flat {expected} vector, got {np.dtype(dtype)}")
    vector = np.frombuffer(data, dtype, offset=start)
    if count != vector.size:
        raise SiteError(f"its weights are truncated: {vector.size} of {count}")
    return vector


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Re-raise whatever goes wrong over bytes from another machine as ``SiteError``."""
    try:
        yield
    except SiteError:
        raise
    except Exception as error:  # foreign bytes break readers in ways nobody has listed
        kind = type(error).__name__
        raise SiteError(f"{what} cannot be read ({kind}): {clean(error)}") from error


def pack_reply(trained: Vector, received: Vector, dtype: str) -> ArrayRecord:
    """Pack what a site trained: the weights, or in 16 bits how they differ from those received.

    A change is small, so 16 bits lose little of it; and what rounding took from the weights on
    their way down is not taken from the global model.
    """
    return pack_weights(trained if dtype == "float32" else trained - received, dtype)


def unpack_reply(content: RecordDict, sent: Vector, dtype: str) -> Vector:
    """Return the weights a site trained, from what :func:`pack_reply` made, all of them finite.

    Parameters
    ----------
    content
        Content of the reply.
    sent
        The global model that the site was sent: float32, shape (parameters,).
    dtype
        Type of the weights on their way, one of ``settings.TRANSPORT_DTYPES``.

    Raises
    ------
    SiteError
        If it holds no vector of that dtype and of the length of ``sent``, or it is not finite.
    """
    vector = unpack_weights(content, dtype)
    if vector.shape != sent.shape:
        raise SiteError(f"sent {vector.size} weights instead of {sent.size}")
    if not is_finite(vector):
        raise SiteError("its weights are not finite")
    if dtype == "float32":
        return vector
    with np.errstate(over="ignore"):
        trained: Vector = sent + vector
    if not is_finite(trained):
        raise SiteError("its weights are not finite")
    return trained


def pack_payload(text: str) -> ConfigRecord:
    """Pack a payload as JSON text: nested values do not fit Flower's records."""
    return ConfigRecord({PAYLOAD: text, FORMAT: WIRE_FORMAT})


def unpack_payload(content: RecordDict, reader: str = "server") -> str:
    """Return the JSON text of a message.

    Parameters
    ----------
    content
        Content of the message.
    reader
        ``server`` or ``site``: whose format is compared, and who may have to be upgraded.

    Raises
    ------
    SiteError
        If there is none, it is of another format, or the message holds what no message does.
    """
    with reading("its message"):
        extra = [name for name in content if name not in _RECORDS]
        record = content.config_records.get(CONFIG, ConfigRecord())
        text = record.get(PAYLOAD)
        if extra or not isinstance(text, str) or record.keys() - {PAYLOAD, FORMAT}:
            raise SiteError("a message without payload, or with more than that")
        found = record.get(FORMAT, 1)
        if found != WIRE_FORMAT:
            problem = format_problem(_number(found), WIRE_FORMAT, f"the {reader}", "its sender")
            raise SiteError(f"messages of {problem}")
        return text


def _number(value: object) -> int:
    if type(value) is not int:
        raise SiteError("a message whose format is no number")
    return value


def pack_content(payload: str, weights: ArrayRecord | None = None) -> RecordDict:
    """Return the content of a message: a payload, and weights where it has some."""
    content = RecordDict({CONFIG: pack_payload(payload)})
    if weights is not None:
        content[ARRAYS] = weights
    return content


def reply(message: Message, payload: str, weights: ArrayRecord | None = None) -> Message:
    """Answer a message."""
    return Message(pack_content(payload, weights), reply_to=message)


def num_bytes(content: RecordDict) -> int:
    """Count the bytes of a message's arrays and payload."""
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
