"""Commands: flags, environment and the terminal, nothing else."""

from nnunetv2_federated.federation.children import end_workers_with_command

end_workers_with_command()
