"""Defaults of the functions of this package, which its commands share.

Each stands here once: signatures, flags and help texts take it from here. Nothing heavy is
imported, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["kermany", "rsna", "folder", "npz"]
"""Kind of a dataset to convert."""
Norm: TypeAlias = Literal["batch", "group"]
"""``batch`` keeps a model's BatchNorm, ``group`` replaces each by a GroupNorm."""

NORMS: tuple[Norm, ...] = get_args(Norm)

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
"""File in which RSNA publishes the patients of its challenge."""
PLANS = "nnUNetPlans"
"""Name of nnU-Net's plans."""
TRAINER = "nnUNetTrainerCls"
"""Trainer of a classifier."""
FOLDS = ("0", "1", "2", "3", "4")
"""Folds whose predictions are averaged."""
CHECKPOINT = "checkpoint_final.pth"
"""File name of a trained fold's weights."""
PARENT = "2d"
"""Configuration from which one for classification inherits."""
CONFIGURATION = f"{PARENT}_cls"
"""Configuration for classification."""
BATCH_SIZE = 32
"""Images in a batch."""
MODEL = "resnet18"
"""Model of timm."""
NORM: Norm = "batch"
"""Normalisation of the model."""
