"""What a site answers to a round: from a message to a checked report and its weights."""

from __future__ import annotations

from flwr.app import Message

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.messages import SiteDescription, TrainReport, Validation
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.flower.records import reading, unpack_payload, unpack_reply


def read_training(
    message: Message, described: SiteDescription, sent: Vector, dtype: str, classes: int | None
) -> tuple[TrainReport, Vector]:
    """Read a site's answer to a train message; whatever is in it, nothing else comes out.

    Parameters
    ----------
    message
        As it came.
    described
        What the site told of itself when it joined.
    sent
        The weights it was sent, float32, shape (parameters,).
    dtype
        Of weights on the way.
    classes
        Foreground classes or regions that a validation counts voxels of; ``None`` if unknown.

    Returns
    -------
    tuple
        The report, and the trained weights, finite, float32, shape (parameters,).

    Raises
    ------
    SiteError
        If the site failed or a part of its answer cannot be used; says why, in one line.
    """
    with reading("its answer"):
        if message.has_error():
            raise SiteError(clean(message.error.reason or "failed without a reason"))
        report = TrainReport.from_json(unpack_payload(message.content))
        if report.site != described.site:
            raise SiteError(f"answered as {report.site}")
        if report.training_cases != described.training_cases:
            raise SiteError(
                f"trained on {report.training_cases} cases, but described "
                f"{described.training_cases} when it joined"
            )
        for validation in (report.validation, report.received):
            check_validation(validation, classes)
        return report, unpack_reply(message.content, sent, dtype)


def check_validation(validation: Validation | None, classes: int | None) -> None:
    """Raise ``SiteError`` unless a validation has a count for each class, or none was made."""
    if validation is None or classes is None or validation.iterations == 0:
        return
    if len(validation.tp) != classes:
        raise SiteError(f"counted voxels of {len(validation.tp)} classes, there are {classes}")
