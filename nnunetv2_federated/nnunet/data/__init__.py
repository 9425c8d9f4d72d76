"""A dataset as nnU-Net has it: its files, cases, folds and sites, and whether they agree."""
