"""The composition root: the only part of the engine that knows connectors and functions."""
