"""Record-level differential privacy of a site, by DP-SGD."""
