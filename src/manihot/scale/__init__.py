"""A run's jobs on several GPUs or machines, by Ray (extra `ray`)."""
