"""Everything that knows nnU-Net and torch: data, planning, training and evaluation."""
