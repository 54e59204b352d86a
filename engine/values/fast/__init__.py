"""The compiled way from JSON values to columns; `engine.values.json_decoder` is its reference and its user."""
