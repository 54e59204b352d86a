"""A Confluent-compatible schema registry, as a source of schemas."""

from connectors.registry.client import Registry

__all__ = ["Registry"]
