"""Everything that needs torch (extra `train`): networks, losses, optimisers, the loop."""

from manihot.extras import need_train

need_train("this part of manihot trains networks, which")  # here, so that no import ends in a stack trace
