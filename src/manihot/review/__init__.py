"""The label review: what to look at first, the page, the answers of one or several people, and how far they agree."""
