"""Combining predictions of several members."""
