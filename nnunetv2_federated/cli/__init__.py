"""Commands: flags, environment and the terminal, nothing else."""
