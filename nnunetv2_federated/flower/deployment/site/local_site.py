"""What a hospital offers a federation."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.flower.deployment.site.limits import Limits
from nnunetv2_federated.nnunet.data.dataset import find_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalSite:
    """A dataset and a device of this machine, and how much may be done with them."""

    name: str
    """Name of the site."""
    dataset: str
    """Id or name of the site's dataset."""
    folder: Path
    """Private folder for what was proposed, approved and spent."""
    device: str
    """Device to train on, in nnU-Net's words."""
    limits: Limits = field(default_factory=Limits)
    processes: int | None = None
    """Processes for fingerprints and preprocessing; ``None`` for nnU-Net's defaults."""
    allowed_modules: tuple[str, ...] = ()
    """Python modules of the hospital's own, whose trainers and networks plans may name."""
    num_gpus: int = 1
    """GPUs to train on."""

    def dataset_name(self) -> str:
        """Return the full name of the dataset.

        Raises
        ------
        SiteError
            If there is no such dataset any more.
        """
        try:
            return str(find_name(self.dataset))
        except SettingsError as error:  # names this machine's folders
            logger.error("the dataset is not found: %s", error)  # noqa: TRY400  # it is the text
            raise SiteError(
                f"site {self.name}: its dataset is not found any more; the site's log says more"
            ) from error
