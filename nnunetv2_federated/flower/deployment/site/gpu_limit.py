"""The share of a GPU's memory that a site gives."""

from __future__ import annotations

import torch

from nnunetv2_federated.flower.deployment.site.local_site import LocalSite


def limit_gpu(here: LocalSite) -> None:
    """Let this process take no more of the GPU's memory than ``max_gpu_gb``."""
    most = here.limits.max_gpu_gb
    if most is None or here.device != "cuda":
        return
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))
