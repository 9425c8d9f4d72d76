"""Classification trainers by name, where nnU-Net looks for them through ``nnUNet_extTrainer``."""

from nnunetv2_cls.trainer import (
    nnUNetTrainerCls,
    nnUNetTrainerClsNoMirroring,
    nnUNetTrainerClsResNet34,
    nnUNetTrainerClsResNet50,
)

__all__ = [
    "nnUNetTrainerCls",
    "nnUNetTrainerClsNoMirroring",
    "nnUNetTrainerClsResNet34",
    "nnUNetTrainerClsResNet50",
]
