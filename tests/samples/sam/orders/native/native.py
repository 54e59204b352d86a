"""What the program does: nothing, well."""


def handler(event: object, context: object) -> None:
    """Take a batch."""
