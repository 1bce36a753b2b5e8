"""The feed's tables: made on first use, beside a journal that is there already, the same on both databases; the catalogue in them once."""

import sqlalchemy as sa

from nullius.feed import catalogue, migrations, papers, tables
from nullius.feed import database as feed_database
from nullius.lab import journal, schema
from nullius.lab.schema import url


def count(table, *conditions):
    with feed_database.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table).where(*conditions)).scalar()


def test_first_use_makes_the_tables_and_seeds_the_catalogue(empty_database):
    assert count(tables.paper) == len(catalogue.papers())
    assert count(tables.paper_day, tables.paper_day.c.day == catalogue.day()) == len(catalogue.papers())
    assert count(tables.account, tables.account.c.id == tables.LOCAL) == 1


def test_a_journal_from_before_the_feed_is_upgraded_and_keeps_its_runs(empty_database):
    run = {"id": "0" * 26, "slug": "embers", "asked_subject": "toy", "full": False, "seed": 0, "options": {}}
    journal.begin_run(run)
    assert count(tables.paper) == len(catalogue.papers())
    assert journal.get_run("0" * 26)["slug"] == "embers"


def test_seeding_twice_is_seeding_once_and_a_changed_entry_is_written(empty_database, monkeypatch):
    count(tables.paper)
    with feed_database.writing() as connection:
        connection.execute(tables.paper.update().values(abstract="kept", votes=3))
        connection.execute(tables.paper_source.update().where(tables.paper_source.c.external_id == "embers").values(payload_sha256="old"))
        connection.execute(tables.paper.update().where(tables.paper.c.slug == "embers").values(summary="old"))
    feed_database.make_ready.cache_clear()
    assert count(tables.paper) == len(catalogue.papers())
    assert count(tables.paper, tables.paper.c.abstract == "kept", tables.paper.c.votes == 3) == len(catalogue.papers())
    assert count(tables.paper, tables.paper.c.summary == catalogue.paper("embers").summary) == 1


def test_up_down_up_and_nothing_left_to_migrate(empty_database):
    count(tables.paper)
    with schema.writing() as connection:
        migrations.check(connection)
        migrations.downgrade(connection)
        left = set(sa.inspect(connection).get_table_names())
        assert not left & tables.metadata.tables.keys()
        assert schema.metadata.tables.keys() <= left
        migrations.upgrade(connection)
        migrations.check(connection)


def test_the_schema_matches_the_code_on(empty_database):
    count(tables.paper)
    engine = sa.create_engine(url())
    found = sa.inspect(engine)
    for table in tables.metadata.sorted_tables:
        assert {column["name"] for column in found.get_columns(table.name)} == {column.name for column in table.columns}
        checks = [c for c in table.constraints if isinstance(c, sa.CheckConstraint)]
        assert {c["name"] for c in found.get_check_constraints(table.name)} == {c.name for c in checks}
    engine.dispose()


def test_a_renamed_paper_keeps_its_old_address(empty_database):
    count(tables.paper)
    with feed_database.writing() as connection:
        connection.execute(tables.paper.update().where(tables.paper.c.slug == "embers").values(slug="sparks"))
        connection.execute(tables.paper_source.delete().where(tables.paper_source.c.external_id == "embers"))
    feed_database.make_ready.cache_clear()
    assert papers.find("sparks").key == "embers"
    assert papers.find("sparks").redirect
    assert count(tables.paper) == len(catalogue.papers())
