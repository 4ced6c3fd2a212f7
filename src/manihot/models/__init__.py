"""Backbones, heads, pretrained weights, and saving a model with all that is needed to use it."""
