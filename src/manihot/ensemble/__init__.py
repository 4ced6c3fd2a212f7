"""Combining predictions of several members; never torch, apart from the CNN stackers inside their
function.
"""
