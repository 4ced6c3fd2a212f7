"""Photographs as training batches: augmentation, mixing, sampling, the loader."""
