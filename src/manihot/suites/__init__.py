"""Suites: a baseline and single changes of it, trained alike and compared on the same photographs."""
