"""A module that cannot be imported: its init phase fails."""

raise RuntimeError("no settings: ü")
