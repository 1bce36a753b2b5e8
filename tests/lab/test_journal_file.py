"""The journal as a SQLite file."""

import pytest
import sqlalchemy as sa
from tests.lab.test_journal import begin, done

from nullius.errors import NulliusError
from nullius.lab import journal, schema

pytestmark = pytest.mark.usefixtures("only_sqlite")


def test_reading_waits_for_nobody_and_writers_take_turns(monkeypatch):
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 0.2)
    first = done("01A")
    with schema.writing() as connection:
        connection.execute(schema.run.update().values(reason="unseen"))
        assert journal.get_run(first)["reason"] == ""
        with pytest.raises(NulliusError, match="another process has held it"):
            begin("01B")
    assert journal.get_run(first)["reason"] == "unseen"


def test_a_folder_with_an_odd_name(tmp_path, monkeypatch):
    folder = tmp_path / "a b?c#d%20é"
    monkeypatch.setenv("NULLIUS_DATA", str(folder))
    done("01A")
    assert (folder / "nullius.db").is_file()
    assert len(journal.list_runs()) == 1


def test_the_database_is_in_wal_mode_and_checks_its_keys():
    with schema.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA user_version").scalar() == schema.SCHEMA_VERSION
    with pytest.raises(NulliusError), schema.writing() as connection:
        connection.execute(sa.insert(schema.artefact).values(run_id="nobody", name="x", bytes=1, sha256="x"))


def test_more_runs_than_a_statement_has_variables():
    with schema.writing() as connection:
        rows = [{"id": f"{i:026}", "started": f"{i:08}"} for i in range(33_000)]
        common = {"slug": "p", "asked_subject": "a", "full": False, "seed": 0, "options": {}, "state": "done", "reason": ""}
        common |= {"heartbeat": journal.now(), "host": "h", "pid": 1, "pid_started": 0.0}
        connection.execute(schema.run.insert(), [{**common, **row} for row in rows])
    assert len(journal.list_runs(limit=100_000)) == 33_000
