"""Estimators on several processes and machines, by the engines that exist for it.

Nothing of an engine is imported before a function is called with one of its objects.
"""

from skae.distributed._map_rows import map_rows
from skae.engine.processes import single_process

__all__ = ["map_rows", "single_process"]
