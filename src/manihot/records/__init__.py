"""The two records through which the rooms speak, `Manifest` and `Predictions`, and the run folder they lie in."""
