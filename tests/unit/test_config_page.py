"""docs/configuration.md says what the models say."""

from pathlib import Path

from engine.config_page import page


def test_the_page_is_up_to_date() -> None:
    """The committed page is the one that the models give; `python -m engine.config_page` makes it anew."""
    committed = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page() == committed
