"""Every HTML page and picture, the leaderboard, a run as a zip."""
