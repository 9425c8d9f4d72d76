"""Image-level classification through nnU-Net's data pipeline."""
