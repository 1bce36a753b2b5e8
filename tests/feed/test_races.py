"""Two processes that write the same thing at the same moment: both go on as if they had come one after the other, on both databases.

On SQLite the second waits before it begins. On PostgreSQL each of these failed, lost or doubled something before the rows were locked, or
written by INSERT … ON CONFLICT.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest
import sqlalchemy as sa

from nullius.feed import claims, discussion, papers, tables
from nullius.feed import database as feed_database
from nullius.feed.digest import bounces, subscriptions
from nullius.feed.digest.clock import Schedule
from nullius.feed.digest.settings import MailSettings
from nullius.feed.search import embedding
from nullius.feed.tables import LOCAL
from nullius.lab import journal, schema

NOW = datetime(2026, 2, 10, 9, 0, tzinfo=UTC)
MAIL = MailSettings("smtp://127.0.0.1:25", "digest@lab.example", "https://lab.example", b"s" * 32)
DAILY = subscriptions.Wish("daily", "", Schedule("daily", 7, "UTC"))
SUBJECT = {"sha256": "ab" * 32, "name": "a", "parameters": 10, "architecture": "llama", "chat": False, "provenance": {}}


@contextlib.contextmanager
def meeting_before(statement: str, number: int) -> Iterator[None]:
    """Hold up each thread before its first statement that begins so, until all are there; one that is kept waiting by a lock is not waited for."""
    together, met = threading.Barrier(number), threading.local()

    def wait(_connection, _cursor, text, *_) -> None:
        if text.lstrip().startswith(statement) and not getattr(met, "already", False):
            met.already = True
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(0.7)

    sa.event.listen(sa.Engine, "before_cursor_execute", wait)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", wait)


def at_once(statement: str, *tasks) -> list:
    """Do tasks in threads of their own, which meet before a statement. Returns what each gave; raises what one of them raised."""
    given: list = [None] * len(tasks)

    def do(i: int) -> None:
        try:
            given[i] = tasks[i]()
        except Exception as error:
            given[i] = error

    with meeting_before(statement, len(tasks)):
        threads = [threading.Thread(target=do, args=(i,)) for i in range(len(tasks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for one in given:
        if isinstance(one, Exception):
            raise one
    return given


def count(table: sa.Table, *conditions) -> int:
    with feed_database.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table).where(*conditions)).scalar_one()


def begin(run_id: str) -> str:
    journal.begin_run({"id": run_id, "slug": "embers", "asked_subject": "a", "full": False, "seed": 0, "options": {}})
    return run_id


def test_two_runs_name_one_subject(database):
    ids = [begin(f"{i:026}") for i in range(3)]
    at_once("INSERT INTO subject", *(lambda run_id=run_id: journal.identify(run_id, SUBJECT) for run_id in ids))
    assert [about["name"] for about in journal.subjects()] == ["a"]
    assert {journal.get_run(run_id)["subject"]["sha256"] for run_id in ids} == {SUBJECT["sha256"]}


def test_two_servers_read_one_study(database):
    about = {"id": "x", "digest": "d" * 16, "wording": "w"}
    study = {"question": "behaviour", "minutes": 1.0, "subject": "smollm2-135m", "trains_its_own": False, "options": []}

    def write() -> None:
        with feed_database.writing() as connection:
            claims.write(connection, "embers", "1" * 64, {"study": study, "claims": [about]})

    at_once("INSERT INTO study", write, write)
    at_once("INSERT INTO study", write, write)  # and again, where it is known
    assert count(tables.study, tables.study.c.slug == "embers") == 1
    assert count(tables.claim, tables.claim.c.slug == "embers", tables.claim.c.retired_at.is_(None)) == 1


def test_one_person_signs_in_twice(database):
    who = pytest.importorskip("nullius.web.who", reason="the web is not installed")
    from nullius.web.settings import Settings

    found = at_once("INSERT INTO account", *[lambda: who.account_for("Ada@example.org", Settings(secret=b"s" * 32))] * 2)
    assert len(set(found)) == 1
    assert count(tables.account, tables.account.c.email == "ada@example.org") == 1


def test_of_five_wishes_at_once_three_are_mailed(database):
    mails = []

    def ask() -> None:
        subscriptions.request("ada@reader.example", DAILY, MAIL, lambda *mail: mails.append(mail), now=NOW)

    at_once("INSERT INTO address", *[ask] * 2)
    at_once("INSERT INTO ticket", *[ask] * 3)
    assert len(mails) == 3
    assert count(tables.address) == 1


def test_two_links_for_one_wish_make_one_subscription(database):
    links = []
    for _ in range(2):
        subscriptions.request("ada@reader.example", DAILY, MAIL, lambda to, subject, text: links.append(text), now=NOW)
    tokens = [text.split("/confirm/")[1].split()[0] for text in links]
    with feed_database.writing() as connection:
        connection.execute(tables.address.update().values(confirmed_at=journal.now()))  # by an earlier wish
    first, second = at_once("INSERT INTO subscription", *(lambda token=token: subscriptions.confirm(token, NOW) for token in tokens))
    assert first == second is not None
    assert count(tables.subscription) == 1


def test_a_report_that_two_read_counts_once(database):
    with feed_database.writing() as connection:
        connection.execute(tables.address.insert().values(email="ada@reader.example", created=journal.now()))
    report = b"""From: mailer@example.org
To: bounces@lab.example
Subject: failed
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; example.org

Final-Recipient: rfc822; ada@reader.example
Action: failed
Status: 5.1.1

--b--
"""
    assert sorted(at_once("INSERT INTO bounce", *[lambda: bounces.take(MAIL, report, NOW)] * 2)) == ["hard", "known"]
    assert count(tables.bounce) == 1


def test_two_workers_embed_one_paper(database, tmp_path):
    number = papers.find("embers").id
    with feed_database.reading() as connection:
        row = connection.execute(sa.select(*embedding.COLUMNS).where(tables.paper.c.id == number)).mappings().one()
        text = embedding.text_of(dict(row))

    def embed(where) -> int:
        where.mkdir()
        return embedding._embed_batch(where, lambda texts: np.ones((len(texts), 384), np.float32), [(number, text)])

    at_once("INSERT INTO embedding", *(lambda name=name: embed(tmp_path / name) for name in "ab"))
    assert count(tables.embedding, tables.embedding.c.paper == number) == 1


def test_a_note_that_goes_and_one_that_comes_are_both_counted(database):
    number = papers.find("embers").id
    old = discussion.write(LOCAL, number, "old")
    at_once("UPDATE paper SET", lambda: discussion.write(LOCAL, number, "new"), lambda: discussion.remove(LOCAL, old))
    assert count(tables.note) == 1
    assert count(tables.paper, tables.paper.c.id == number, tables.paper.c.notes == 1) == 1


def test_a_run_that_ends_while_it_is_looked_at_is_not_taken_for_dead(database, monkeypatch):
    """The row says running, the run ends well, its process is gone: who looks for the dead must see that in this order, or not look yet."""
    run_id = begin(f"{1:026}")
    looked = []

    def alive(row) -> bool:
        looked.append(row)
        if len(looked) == 1:
            return False
        ending.start()
        ending.join(0.7)
        return ending.is_alive()  # a process that has written down its end is gone

    ending = threading.Thread(target=lambda: journal.finish_run(run_id, {}, [], [], []))
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_alive", alive)
        assert journal.recover() == []
    ending.join(60)
    assert len(looked) == 2
    assert count(schema.run, schema.run.c.state == "done") == 1


def test_reading_is_of_one_moment(database):
    with feed_database.reading() as connection:
        runs = sa.select(sa.func.count()).select_from(schema.run)
        before = connection.execute(runs).scalar()
        begin(f"{1:026}")
        assert connection.execute(runs).scalar() == before == 0
    assert count(schema.run) == 1


def test_of_several_that_find_it_empty_one_makes_the_tables(empty_database):
    made = at_once("\nCREATE TABLE subject", *[lambda: schema._engine.__wrapped__(schema.url())] * 3)
    for engine in made:
        assert schema.metadata.tables.keys() <= set(sa.inspect(engine).get_table_names())
        engine.dispose()
