"""Run by alembic: migrates over the connection that `nullius.feed.migrations` hands in."""

from __future__ import annotations

from alembic import context

from nullius.feed import tables
from nullius.lab import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[schema.metadata, tables.metadata],
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
