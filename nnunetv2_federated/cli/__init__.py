"""Commands: flags, environment and the terminal, nothing else."""

import warnings

from nnunetv2_federated.federation.children import end_workers_with_command

warnings.filterwarnings("ignore", category=FutureWarning)  # a library's, to its developers
end_workers_with_command()
