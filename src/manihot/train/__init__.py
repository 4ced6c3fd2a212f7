"""Everything that needs torch (extra `train`): networks, losses, optimisers, the loop."""
