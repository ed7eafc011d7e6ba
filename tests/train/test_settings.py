"""The page of settings is what the code says, and every setting has a help text."""

from pathlib import Path

from fairlead.train.settings import page, sections

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m fairlead.train.settings > docs/settings.md"


def test_every_setting_has_a_default_and_a_help_text() -> None:
    missing = [row.name for _, rows in sections() for row in rows if not row.help]
    plain = {"environment", "network", "ppo", "validation", "stability"}
    assert set(missing) <= plain, missing
    assert sum(len(rows) for _, rows in sections()) > 120
