"""Event filtering as Lambda's event source mappings do it: which records a function gets to see.

The machine code of the column-wise path is loaded when a batch is first filtered, not by this import.
"""

from engine.filters.criteria import FILTERS_MAX, FilterCriteria
from engine.filters.pattern import PATTERN_CHARACTERS_MAX, InvalidPattern, Pattern

__all__ = ["FILTERS_MAX", "PATTERN_CHARACTERS_MAX", "FilterCriteria", "InvalidPattern", "Pattern"]
