"""Differential privacy of a site's patients: what of a training is clipped and has noise added."""
