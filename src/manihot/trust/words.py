"""What stands in place of a class where a photograph is not answered."""

from __future__ import annotations

ASK = "ask an expert"
POOR = "poor photograph"
NOT_OF_THIS_KIND = "not a photograph of this kind"
