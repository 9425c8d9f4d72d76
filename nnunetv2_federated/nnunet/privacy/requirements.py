"""What a trainer must be for its private steps to be what is promised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.privacy import LARGEST_CLIP
from nnunetv2_federated.federation.text import some_cases
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def check_trainer(trainer: nnUNetTrainer, privacy: PrivateTraining) -> None:
    """Refuse an initialised trainer that cannot train with differential privacy.

    Raises
    ------
    SettingsError
        If another patient may change what one patient adds to a step by more than is promised, or
        a setting of the trainer would do nothing.
    """
    name = type(trainer).__name__.removesuffix("Federated")
    if trainer.is_ddp:
        raise SettingsError(
            "differential privacy with several processes (DDP): a site trains in one; use one GPU."
        )
    if privacy.clip > LARGEST_CLIP:
        raise SettingsError(
            f"--dp-clip {privacy.clip:g}: nnU-Net itself clips every gradient to {LARGEST_CLIP:g}, "
            "and the noise would be larger for nothing; give a smaller one, such as 1."
        )
    _check_network(trainer.network)
    if trainer.is_cascaded:
        raise SettingsError(
            f"differential privacy with {trainer.configuration_name}: its images come with "
            "predictions of a stage that was trained on other patients, which tell of them; use a "
            "configuration without a stage before it."
        )
    if getattr(trainer, "class_weights", None) is not None:
        raise SettingsError(
            f"differential privacy with class_weights of {name}: a patient's case has one class, "
            "and in the weighted mean over one class they cancel; leave class_weights at None."
        )
    if getattr(trainer, "balanced_sampling", False):
        raise SettingsError(
            f"differential privacy with balanced_sampling of {name}: all patients are drawn with "
            "one probability, on which the promise rests; leave balanced_sampling at False."
        )


def _check_network(network: nn.Module) -> None:
    """Refuse a network that keeps statistics of images outside of what is trained."""
    for name, module in network.named_modules():
        if getattr(module, "running_mean", None) is None and not isinstance(
            module, nn.modules.batchnorm._BatchNorm
        ):
            continue
        raise SettingsError(
            f"differential privacy with {type(module).__name__} ({name}): it keeps statistics of "
            "the images beside the weights, without clipping and noise; give --batchnorm group, "
            "or a trainer and plans with InstanceNorm."
        )


def check_transform(augmenter: Any) -> None:  # noqa: ANN401  # batchgenerators'
    """Refuse an augmenter that transforms whole batches, behind its loader."""
    if getattr(augmenter, "transform", None) is not None:
        raise SettingsError(
            f"differential privacy with a {type(augmenter).__name__} that transforms whole "
            "batches: give a trainer whose transforms are in nnU-Net's data loader."
        )


def check_loader(loader: Any, privacy: PrivateTraining) -> None:  # noqa: ANN401  # nnU-Net's
    """Refuse a training loader that draws in another way, or other cases than the patients'.

    Raises
    ------
    SettingsError
        If it is no loader of nnU-Net's kind, draws some cases more often than others, or a case has
        no patient or is a patient's but no training case.
    """
    needed = ("indices", "batch_size", "transforms", "generate_train_batch")
    missing = [name for name in needed if not hasattr(loader, name)]
    if missing:
        raise SettingsError(
            f"differential privacy with {type(loader).__name__} as data loader, which has no "
            f"{missing[0]}: patients are drawn through nnU-Net's; give a trainer that has it."
        )
    if getattr(loader, "sampling_probabilities", None) is not None:
        raise SettingsError(
            "differential privacy with sampling_probabilities of a data loader: all patients are "
            "drawn with one probability; give a trainer that draws all cases alike."
        )
    trained = {str(case) for case in loader.indices}
    known = {case for cases in privacy.patients.values() for case in cases}
    if trained - known:
        raise SettingsError(
            f"{some_cases(trained - known)} without a patient: give every training case one in "
            "column patient of the case table."
        )
    if known - trained:
        raise SettingsError(
            f"{some_cases(known - trained)} of the patients, but not among the training cases of "
            "this fold: name only those that are trained on."
        )
