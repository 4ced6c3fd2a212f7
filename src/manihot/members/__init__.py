"""A member of a run: its photographs, the labels it learns, its folds."""
