"""Migrations of the feed's tables (alembic). The lab makes its own tables; `check` compares both with the database.

To change a table: change `nullius.feed.tables`, add a revision to `versions/`, set `nullius.feed.database.HEAD`.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config

if TYPE_CHECKING:
    import sqlalchemy as sa


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Bring the feed's tables to a revision, within the caller's transaction."""
    command.upgrade(_config(connection), revision)


def downgrade(connection: sa.Connection, revision: str = "base") -> None:
    """Go back to a revision, within the caller's transaction; "base" removes the feed's tables and leaves the lab's."""
    command.downgrade(_config(connection), revision)


def check(connection: sa.Connection) -> None:
    """Raise alembic.util.CommandError when the database and the tables of the code (the lab's too) differ."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*expression-based index.*")  # SQLite cannot show them: compared on PostgreSQL
        command.check(_config(connection))


def _config(connection: sa.Connection) -> Config:
    config = Config(stdout=io.StringIO())  # what matters alembic raises
    config.set_main_option("script_location", "nullius.feed:migrations")
    config.attributes["connection"] = connection
    return config
