"""What leaves the run: the report, the leaderboard, and later models for phones."""
