"""The names that other benchmarks import, where they were before."""
from tests.benchmarks.clock import memory_mb
from tests.benchmarks.quality import drawn_masks, scene_of
from tests.benchmarks.tables import Columns, Row, machine, markdown, write

__all__ = ['Columns', 'Row', 'drawn_masks', 'machine', 'markdown', 'memory_mb', 'scene_of', 'write']
