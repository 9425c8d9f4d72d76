"""The share of a GPU's memory that a site gives."""

from __future__ import annotations

from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.nnunet.device import limit_gpu_memory


def limit_gpu(here: LocalSite) -> None:
    """Let this process take no more of the GPU's memory than ``max_gpu_gb``."""
    if here.device == "cuda":
        limit_gpu_memory(here.limits.max_gpu_gb)
