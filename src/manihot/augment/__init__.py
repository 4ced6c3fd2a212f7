"""Augmentation: operations on uint8 photographs, fused into one sampling; test-time views."""
