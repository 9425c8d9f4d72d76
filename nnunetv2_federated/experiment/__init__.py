"""From what a user chose to a run, its training, and comparisons of runs; no terminal here."""
