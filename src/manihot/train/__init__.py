"""Training: steps, the loop, features, cross-validation."""
