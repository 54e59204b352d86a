"""The checks of `headrace doctor`, by what they look at: the machine, the cluster, sinks, and what a run serves.

Each is a function of the `Case` that gives findings and changes nothing. Their order is in `engine.compose.doctor`.
"""
