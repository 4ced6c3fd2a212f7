"""Losses, optimisers, schedules and weight averaging: plain registries of functions."""
