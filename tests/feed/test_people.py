"""Votes, the library, the discussion."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed import database as feed_database
from nullius.feed import discussion, library, papers, tables
from nullius.lab.journal import now

from .made import add_run


@pytest.fixture
def embers(database):
    with feed_database.writing() as connection:
        for name in ("ada", "bob"):
            values = {"id": name, "email": f"{name}@example.org", "name": name.title(), "role": "member", "created": now()}
            connection.execute(tables.account.insert().values(**values))
        return papers.find_in(connection, "embers").id


def test_the_card_counts_votes_and_notes_and_knows_mine(embers):
    library.vote("ada", embers)
    library.vote("bob", embers)
    discussion.write("ada", embers, "Look at the cipher.")
    library.save("ada", embers)
    mine, theirs = (papers.get(embers, account=name).card for name in ("ada", "bob"))
    assert (mine.votes, mine.notes, mine.voted, mine.saved) == (2, 1, True, True)
    assert (theirs.voted, theirs.saved) == (True, False)


def test_a_vote_for_a_paper_that_is_not_there_is_none(embers):
    assert library.vote("ada", 10**9) == 0


def test_the_library_keeps_what_it_is_not_told_to_change(embers):
    library.save("ada", embers, note="why?", collection="to read")
    library.save("ada", embers, read=True)
    (entry,) = library.saved_papers("ada")
    assert (entry.note, entry.collection, entry.read_at is None) == ("why?", "to read", False)
    assert library.saved_papers("ada", unread=True) == library.saved_papers("bob") == ()
    assert library.collections("ada") == {"to read": 1}
    library.unsave("ada", embers)
    assert library.saved_papers("ada") == ()


def test_threads_have_one_level_and_removed_notes_keep_their_place(embers):
    run = add_run("embers", "a", {"x": "holds"})
    top = discussion.write("ada", embers, "first", run_id=run, claim="x")
    answer = discussion.write("bob", embers, "second", parent=top)
    discussion.write("ada", embers, "third", parent=answer)
    (note,) = discussion.thread(embers)
    assert [reply.text for reply in note.replies] == ["second", "third"]
    assert (note.run, note.claim, note.author) == (run, "x", "Ada")
    with pytest.raises(UsageError):
        discussion.remove("bob", top)
    discussion.remove("ada", top)
    (note,) = discussion.thread(embers)
    assert (note.removed, note.text, note.html, len(note.replies)) == (True, "", "", 2)
    discussion.remove("x", answer, maintainer=True)
    assert papers.get(embers).card.notes == 1


@pytest.mark.parametrize(
    "what",
    [{"text": " "}, {"text": "x" * 6000}, {"text": "x", "run_id": "none"}, {"text": "x", "parent": 999}, {"paper_id": 10**9, "text": "x"}],
)
def test_notes_about_nothing_are_refused(embers, what):
    with pytest.raises(UsageError):
        discussion.write("ada", **{"paper_id": embers} | what)


NASTY = ["<script>", "](javascript:x)", "![a](b)", "[", "`", "<img src=x onerror=y>", "&lt;", "|a|\n|-|\n"]


@given(st.text(max_size=300) | st.lists(st.sampled_from(NASTY)).map("".join))
@settings(deadline=None)
def test_no_markdown_becomes_anything_that_runs(text):
    html = discussion.html(text).lower()
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html


def test_many_voters_at_once(embers):
    names = [f"voter{i}" for i in range(12)]
    with feed_database.writing() as connection:
        for name in names:
            connection.execute(tables.account.insert().values(id=name, role="member", created=now()))
    failed = []

    def vote_often(name):
        try:
            for _ in range(5):
                library.vote(name, embers)
                library.unvote(name, embers)
            library.vote(name, embers)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=vote_often, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert papers.get(embers).card.votes == len(names)
