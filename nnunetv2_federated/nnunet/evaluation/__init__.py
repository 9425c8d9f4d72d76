"""What a trained model is worth: nnU-Net's full validation, and tests on raw images."""
