"""Commands: flags, environment and the terminal, nothing else.

Importing this package changes the process, because it is a command or a worker of one: a worker
ends with its command, and nnU-Net, which reads the number of its workers when it is imported,
starts no more of them than the machine has cores.
"""

import warnings

from nnunetv2_federated.federation.children import end_workers_with_command
from nnunetv2_federated.nnunet.workers import bound_workers

warnings.filterwarnings("ignore", category=FutureWarning)  # a library's, to its developers
end_workers_with_command()
bound_workers()
