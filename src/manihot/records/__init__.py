"""The two records through which the rooms speak, `Manifest` and `Predictions`, and their run folder."""
