"""What ``nnUNet_extTrainer`` points at: trainers for the stock ``nnUNetv2_train``.

``nnUNetv2_train DATASET 2d FOLD -tr nnUNetTrainerFederated`` runs a whole federation on this
machine; any other trainer is found as ``<Name>Federated``. Settings come from the file named by
``nnUNet_federated_settings``, the same TOML as ``nnUNetv2_train_federated --settings``.
"""

from __future__ import annotations

from nnunetv2_federated.cli.stock_command import with_federation
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.training.trainer import federated_trainer
from nnunetv2_federated.nnunet.training.trainer import nnUNetTrainerFederated as _Trainer

nnUNetTrainerFederated = with_federation(_Trainer)  # noqa: N816  # a class


def __getattr__(name: str) -> type:
    """Federate any trainer whose name is asked for with ``Federated`` at its end."""
    if not name.endswith("Federated") or name.startswith("_"):
        raise AttributeError(name)
    try:
        return with_federation(federated_trainer(name.removesuffix("Federated")))
    except SettingsError as error:
        raise AttributeError(name) from error
