"""The only room that knows nnU-Net's training side."""
