"""Photographs as training batches: mixing, the loader, photographs without a label."""
