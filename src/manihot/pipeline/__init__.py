"""The main job: `run` is its table of contents."""

from manihot.pipeline.job import prepare, run
from manihot.pipeline.opening import check_settings

__all__ = ["check_settings", "prepare", "run"]
