"""Federated training for nnU-Net v2, with Flower."""
