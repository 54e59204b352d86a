"""Execution environments: the processes that Lambda handlers run in, and what an invocation in one costs.

Nothing is imported here, so that what runs inside of an environment loads the standard library alone.
"""
