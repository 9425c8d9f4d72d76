"""What ``nnUNet_extTrainer`` points at: the classification trainers, by name."""

from nnunetv2_cls.trainer import (
    nnUNetTrainerCls,
    nnUNetTrainerClsResNet34,
    nnUNetTrainerClsResNet50,
)

__all__ = [
    "nnUNetTrainerCls",
    "nnUNetTrainerClsResNet34",
    "nnUNetTrainerClsResNet50",
]
