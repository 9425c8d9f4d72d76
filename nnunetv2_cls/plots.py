"""Plot a classifier: ROC, precision-recall, calibration, confusion matrix, progress, activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay

from nnunetv2_cls.metrics import Classes, Probabilities, predict_classes

_STYLE = mpl.rc_params_from_file(mpl.matplotlib_fname(), fail_on_error=False)
"""Settings of matplotlib as installed; nnU-Net's plots change the global ones."""


def plot_classification(
    targets: Classes,
    probabilities: Probabilities,
    classes: Sequence[str],
    threshold: float,
    folder: Path,
) -> None:
    """Write ``roc.png``, ``precision_recall.png``, ``calibration.png`` and ``confusion.png``."""
    positives = [1] if len(classes) == 2 else list(range(len(classes)))
    curves = {
        "roc": RocCurveDisplay.from_predictions,
        "precision_recall": PrecisionRecallDisplay.from_predictions,
        "calibration": CalibrationDisplay.from_predictions,
    }
    with mpl.rc_context(_STYLE):
        for name, draw in curves.items():
            figure = Figure((6, 6), layout="constrained")
            axes = figure.subplots()
            for c in positives:
                outcomes = targets == c
                if 0 < outcomes.sum() < len(outcomes):
                    draw(outcomes, probabilities[:, c], name=classes[c], ax=axes)
            if name == "roc":
                axes.plot([0, 1], [0, 1], ":", color="grey")
            figure.savefig(folder / f"{name}.png", dpi=120)
        figure = Figure((1.5 + len(classes), 1.5 + len(classes)), layout="constrained")
        axes = figure.subplots()
        ConfusionMatrixDisplay.from_predictions(
            targets,
            predict_classes(probabilities, threshold),
            labels=list(range(len(classes))),
            display_labels=list(classes),
            cmap="Blues",
            colorbar=False,
            ax=axes,
        )
        figure.savefig(folder / "confusion.png", dpi=120)


def plot_progress(log: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Plot losses, macro F1, AUROC, learning rate and seconds by epoch, from nnU-Net's log."""
    epochs = len(log["mean_fg_dice"])
    with mpl.rc_context(_STYLE):
        figure = Figure((9, 12), layout="constrained")
        panels = figure.subplots(4, 1, sharex=True)
        seconds = np.subtract(
            log["epoch_end_timestamps"],
            log["epoch_start_timestamps"][: len(log["epoch_end_timestamps"])],
        )
        drawn: list[tuple[str, dict[str, Sequence[Any]]]] = [
            ("loss", {"training": log["train_losses"], "validation": log["val_losses"]}),
            (
                "validation",
                {"macro F1": log["mean_fg_dice"], "AUROC": log.get("auroc", [])},
            ),
            ("learning rate", {"": log["lrs"]}),
            ("seconds", {"": list(seconds)}),
        ]
        for axes, (label, lines) in zip(panels, drawn, strict=True):
            for name, values in lines.items():
                if len(values):
                    axes.plot(range(len(values[:epochs])), values[:epochs], label=name)
            axes.set_ylabel(label)
            if label == "validation":
                axes.set_ylim(0, 1.02)
            axes.grid(alpha=0.3)
            if len(lines) > 1:
                axes.legend()
        panels[-1].set_xlabel("epoch")
        figure.savefig(path, dpi=100)


def plot_activation(image: NDArray[Any], activation: NDArray[Any], title: str, path: Path) -> None:
    """Plot an activation map over an image as the network saw it.

    Parameters
    ----------
    image
        Image of shape (channels, y, x); the mean of its channels is shown.
    activation
        Activation of shape (y, x), from 0 to 1.
    title
        Title above the image.
    path
        PNG file to write.
    """
    rows, columns = activation.shape
    with mpl.rc_context(_STYLE):
        figure = Figure((4, 4 * rows / columns + 0.4), layout="constrained")
        axes = figure.subplots()
        axes.imshow(image.mean(0), cmap="gray")
        axes.imshow(activation, cmap="jet", alpha=0.4 * activation, vmin=0, vmax=1)
        axes.set_title(title)
        axes.axis("off")
        figure.savefig(path, dpi=120)
