"""The handler kinds: what a function is called with, and what it may give back.

Nothing is imported here, so that `loader`, `calling`, `kinesis` and `kafka` load with the standard library alone.
"""
