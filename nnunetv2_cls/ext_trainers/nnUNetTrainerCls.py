"""What ``nnUNet_extTrainer`` points at: the classification trainers, by name."""

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
