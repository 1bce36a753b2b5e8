"""The feed's door to the database: the lab's transactions, over tables that are sure to be there and a catalogue that is in them.

A database from before the feed, or of an older feed, is brought up to date the first time that a process opens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import sqlalchemy as sa

from nullius.errors import NulliusError
from nullius.feed import seeding
from nullius.lab import schema

HEAD = "0001"  # the newest revision in migrations/versions
_LOCK = 0x6E756C6C  # one process migrates at a time


@contextmanager
def writing() -> Iterator[sa.Connection]:
    """Open the database in one transaction, all or nothing; the feed's tables are there. Raises NulliusError with one line."""
    make_ready(schema.url())
    with schema.writing() as connection:
        yield connection


@contextmanager
def reading() -> Iterator[sa.Connection]:
    """Open the database at one consistent moment; the feed's tables are there. Raises NulliusError as `writing` does."""
    make_ready(schema.url())
    with schema.reading() as connection:
        yield connection


@lru_cache(maxsize=16)
def make_ready(address: sa.URL) -> None:
    """Bring the database's tables and its catalogue up to date. Looks once per process and database; writes only where something is missing.

    Raises NulliusError when the database was written by a newer nullius.
    """
    with schema.reading() as connection:
        if _is_current(connection) and seeding.is_current(connection):
            return
    with schema.writing() as connection:
        schema.take_turns(connection, _LOCK)
        if not _is_current(connection):
            from nullius.feed import migrations  # alembic, which takes a moment, only where there is something to do

            migrations.upgrade(connection)
        seeding.seed(connection)


def _is_current(connection: sa.Connection) -> bool:
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found is not None and found > HEAD:
        raise NulliusError(f"the feed's tables are of a newer nullius (revision {found}, this one knows {HEAD}): upgrade nullius")
    return bool(found == HEAD)
