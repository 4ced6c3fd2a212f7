"""The one forward loop, test-time views, explanations."""
