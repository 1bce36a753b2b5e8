"""Documents made to break an import: what no database takes, what takes parsers minutes, what two papers share. One bad record costs itself alone."""

import datetime
import gzip
import json
import os
import sys
import threading

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed import database as feed_database
from nullius.feed import heat, papers, tables
from nullius.feed.importers import arxiv, bibtex, records, running, visible
from nullius.feed.importers.decode import Document
from nullius.feed.importers.fetch import Fetcher
from nullius.feed.readable import readable
from nullius.feed.text import one_line

from .documents import ANY, HF, everything, parsed
from .source_server import atom, daily, entry, oai


def with_bad(**change):
    """Three papers, the second with something else in it."""
    listed = [daily(entry(number)) for number in (1, 2, 3)]
    listed[1]["paper"] |= change
    return json.dumps(listed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "\ud800"}, "is no arXiv id"),
        ({"id": "24\x0001\n2"}, "is no arXiv id"),
        ({"id": f"{'a' * 30}/1234567"}, "is no arXiv id"),
        ({"id": "٢٤٠١.٠٠٠٠١"}, "is no arXiv id"),
        ({"publishedAt": "\udfff"}, "is no day"),
        ({"upvotes": "\ud800\n\x00"}, "is no count"),
        ({"upvotes": 2**31}, "is no count"),
    ],
)
def test_a_record_is_left_out_with_a_reason_that_any_database_takes(database, change, reason):
    report = running.import_document(Document.of(with_bad(**change).encode()))
    assert (report.imported, report.rejected, report.error) == (2, 1, "")
    (reject,) = running.rejects_of(report.id)
    assert reason in reject["reason"]
    assert reject["reason"].isprintable()


def test_a_number_of_thousands_of_digits_costs_its_own_record(sqlite):
    report = running.import_document(Document.of(with_bad(upvotes=77777).replace("77777", "7" * 5000).encode()))
    assert (report.imported, report.rejected, report.error) == (2, 1, "")


def test_surrogates_in_what_is_kept_are_dropped(database):
    text = with_bad(githubRepo="https://github.com/x/\ud800y", authors=[{"name": "A\ud800B"}], ai_summary="\udfffSo.")
    assert running.import_document(Document.of(text.encode())).imported == 3
    found = papers.get(papers.find("2401.00002").id)
    assert (found.card.code, found.card.authors, found.their_summary) == ("https://github.com/x/y", ("AB",), "So.")


@given(
    st.dictionaries(
        st.sampled_from(["id", "title", "summary", "authors", "publishedAt", "githubRepo", "ai_summary", "upvotes"]), st.text(), max_size=4
    )
)
@ANY
def test_any_text_in_any_place_is_written_or_left_out(sqlite, change):
    report = running.import_document(Document.of(with_bad(**change).encode()))
    assert (report.imported + report.rejected, report.error) == (3, "")


def test_a_surrogate_written_as_bytes_leaves_the_rest_utf8(sqlite):
    document = Document.of(json.dumps([daily(entry(1, title="Gödel & x"))], ensure_ascii=False).encode().replace(b"&", b"\xed\xa0\x80"))
    assert running.import_document(document).warnings == []
    assert papers.get(papers.find("2401.00001").id).card.title == "Gödel x"


# --- identifiers -----------------------------------------------------------------------------------------------------------------------------


def test_an_old_id_with_its_subject_class_is_the_id_without(database):
    for name in ("math.GT/0309136", "math/0309136v2", "cond-mat.mtrl-sci/9901001"):
        assert running.import_document(Document.of(json.dumps(daily(entry(1, id=name))).encode())).imported == 1
    assert papers.find("math.GT/0309136") == papers.find("arXiv:math/0309136v1")
    assert papers.find("math/0309136").key == "math/0309136"
    assert papers.find("cond-mat/9901001").key == "cond-mat/9901001"


def test_two_papers_of_arxiv_with_one_doi_stay_two(database):
    text = atom([entry(1, title="Part one"), entry(2, title="Part two")], 2, 0).replace("10.1000/2401.00002", "10.1000/2401.00001")
    before = None
    for _ in range(2):
        running.import_document(Document.of(text.encode()))
        assert [papers.get(papers.find(f"2401.0000{number}").id).raw_title for number in (1, 2)] == ["Part one", "Part two"]
        assert papers.find("10.1000/2401.00001").id == papers.find("2401.00001").id
        assert before in (None, everything())
        before = everything()


def test_a_doi_that_no_index_takes_is_no_doi(database):
    name = "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(990))
    text = f"@misc{{a, title={{With a long DOI}}, doi={{10.1000/{name}}}}}\n@misc{{b, title={{With a short one}}, doi={{10.1000/{name[:250]}}}}}"
    assert running.import_document(Document.of(text.encode())).new == 2
    assert papers.find(f"10.1000/{name[:250]}")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ("eprint={2310.15910 [cs.CL]}, archivePrefix={arXiv}", "2310.15910"),
        ("eprint={https://arxiv.org/abs/2310.15910v3}, eprinttype={arxiv}", "2310.15910"),
        ("eprint={arXiv:hep-th/9901001}", "hep-th/9901001"),
        ("eprint={hal-01234}", None),
        ("eprint={hal-01234}, note={also arXiv:2310.15910}", "2310.15910"),
        ("eprint={25073128}, eprinttype={pmid}", None),
    ],
)
def test_what_bibtex_files_write_for_an_eprint(fields, found):
    (record,), _, _ = parsed(f"@misc{{a, title={{T}}, {fields}}}")
    assert record.arxiv_id == found
    _, (reject,), _ = parsed("@misc{a, title={T}, eprint={nonsense}, archivePrefix={arXiv}}")
    assert "is no arXiv id" in reject.reason


# --- days that are yet to come -----------------------------------------------------------------------------------------------------------------


def test_a_day_yet_to_come_is_left_out_or_counts_from_today(database):
    """One such record would be the newest page, and head trending, until its day."""
    later = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=400)
    rejected = [
        with_bad(publishedAt=f"{later}T00:00:00Z"),
        json.dumps([*json.loads(with_bad())[:1], daily(entry(2)) | {"publishedAt": f"{later}T00:00:00Z"}]),
        atom([entry(1), entry(2, day=str(later))], 2, 0),
        f"Daily Papers\n\nNov 4\n\nA title\n\nAn abstract.\n\n• 2 authors\n·\nMay 6, {later.year + 1}\n\nAnother\n\nWith one.",
    ]
    for text in rejected:
        report = running.import_document(Document.of(text.encode()))
        assert report.imported >= 1
        assert [reject["reason"].endswith("is yet to come") for reject in report.rejects] == [True], text[:20]
    running.import_document(Document.of(f"@misc{{a, title={{Forthcoming}}, date={{{later}}}, eprint={{2401.00009}}}}".encode()))
    number = papers.find("2401.00009").id
    with feed_database.reading() as connection:
        assert connection.execute(sa.select(sa.func.max(tables.paper_day.c.day))).scalar() <= records.latest_day()
        stored = connection.execute(sa.select(tables.paper.c.heat).where(tables.paper.c.id == number)).scalar_one()
        assert stored <= heat.current()
        assert heat.parts(connection, [number], heat.current())[number].publication == pytest.approx(1, abs=0.01)
    with feed_database.writing() as connection:
        heat.recompute(connection, [number])
        assert connection.execute(sa.select(tables.paper.c.heat).where(tables.paper.c.id == number)).scalar_one() == pytest.approx(stored)


# --- size ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "oai", "atom", "bibtex"])
def test_ten_thousand_authors(database, kind):
    names = [f"Ada Number{i} Lovelace" for i in range(10_000)]
    one = entry(1, authors=names)
    text = {
        "json": lambda: json.dumps([daily(one)]),
        "oai": lambda: oai([one], "").replace(" and Ada", ", Ada"),
        "atom": lambda: atom([one], 1, 0),
        "bibtex": lambda: f"@misc{{a, title={{T}}, eprint={{2401.00001}}, author={{{' and '.join(names)}}}}}",
    }[kind]()
    assert running.import_document(Document.of(text.encode())).imported == 1
    with feed_database.reading() as connection:
        number = papers.find_in(connection, "2401.00001").id
        found = connection.execute(
            sa.select(tables.paper_author.c.name).where(tables.paper_author.c.paper == number).order_by("position")
        ).scalars()
        assert list(found) == names
        assert connection.execute(sa.select(tables.paper.c.n_authors).where(tables.paper.c.id == number)).scalar() == 10_000


N = 50_000
MADE = {
    "elements": (lambda: parsed("<html><h1>Daily Papers</h1>" + "<div>" * N + "x" + "</div>" * N)[2], ""),
    "tags without end": (lambda: visible.read("<a " * N).text, ""),
    "quotation marks": (lambda: visible.read('a<a x="' * N).text, "a"),
    "remarks": (lambda: visible.read("a<!--" * N).text, "a"),
    "blocks of text": (lambda: len(parsed("Daily Papers\n\n" + "a b\n\n" * N)[0]), 1),
    "braces": (lambda: bibtex._plain("{" * N + "x" + "}" * N), "x"),
    "parentheses": (lambda: arxiv.names("A" + "(" * N + "x" + ")" * N), ("A",)),
    "commands": (lambda: readable("\\'" * N), "\\'" * N),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_made_to_take_minutes_comes_to_an_end(kind):
    """Each of these took minutes or hours, since it was read once more for each of its parts; the suite would not end if one did again."""
    made, expected = MADE[kind]
    assert made() == expected


def test_braces_and_parentheses_that_do_not_match_stay():
    assert bibtex._plain(r"a} {B} {C {\"o} {D}} {e") == r"a} B {C {\"o} D} {e"
    assert arxiv.names("A) B (C (D), E) F, (G, H") == ("A) B  F", "(G", "H")


def test_a_command_that_lacks_its_arguments_prints_nothing(capfd, caplog):
    assert readable(r"On \frac and $\frac$")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# --- what is no document ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04xxxx", "a zip archive"),
        (b"%PDF-1.7 xxxx", "a PDF"),
        (gzip.compress(gzip.compress(HF.encode())), "a gzip file within a gzip file"),
        (b"Dear all, here is prose", "begins “Dear all, here is prose”"),
    ],
)
def test_it_is_said_what_was_found_and_what_was_expected(content, found):
    _, _, error = parsed(content)
    assert found in error
    assert records.EXPECTED in error


def test_a_pipe_is_read_once_and_never_taken_for_the_last_one(sqlite, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for _ in range(2):
        threading.Thread(target=path.write_bytes, args=(gzip.compress(HF.encode()),), daemon=True).start()
        assert running.import_from(str(path)).imported == 5
    with feed_database.writing() as connection:  # as if the last one had been killed behind its third record
        connection.execute(tables.import_run.update().values(state="running", cursor="3"))
    threading.Thread(target=path.write_bytes, args=(HF.encode(),), daemon=True).start()
    assert running.import_from(str(path)).imported == 5


@pytest.mark.parametrize("name", ["none", "x" * 5000, "a\0b", "~nobody-at-all/x", "a title\n\nand an abstract", "\udcff.json"])
def test_what_names_no_file_is_said_in_one_line(sqlite, name):
    with pytest.raises(UsageError, match="there is no file") as said:
        running.import_from(name)
    assert str(said.value).isprintable()
    assert len(str(said.value)) < 400


@given(
    st.text(max_size=30)
    | st.sampled_from(["[::1", "[", "x:99999/", "user:pw@huggingface.co.evil/", "\ud800.org", "a" * 70_000, "-.org/%zz?p=\n"])
)
@ANY
def test_any_web_address_is_refused_in_one_line(sqlite, rest):
    report = running.import_from(f"http://{rest}", fetcher=Fetcher(hosts=frozenset()))
    assert report.error
    assert report.error == one_line(report.error)


def test_an_arxiv_id_is_asked_of_arxiv(sqlite):
    report = running.import_from("arXiv:2310.15910v2", fetcher=Fetcher(hosts=frozenset()))
    assert report.address == "https://arxiv.org/abs/2310.15910"
    assert "https://export.arxiv.org/api/query?id_list=2310.15910" in report.error


def test_nothing_is_no_name_and_there_may_be_no_standard_input(sqlite, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for name in ("", " ", "-"):
        with pytest.raises(UsageError, match=r"nothing|no standard input"):
            running.import_from(name)


def test_a_directory_and_a_file_whose_name_is_no_text(sqlite, tmp_path):
    with pytest.raises(UsageError, match="is a directory"):
        running.import_from(str(tmp_path))
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write(HF)
    assert running.import_from(path).imported == 5
    assert running.imports()[0]["address"].endswith("/.json")


def test_an_import_killed_behind_its_last_batch_has_nothing_left_and_is_no_failure(sqlite, tmp_path):
    path = tmp_path / "papers.json"
    path.write_text(HF, "utf-8")
    assert not running.import_from(str(path)).useless
    with feed_database.writing() as connection:
        connection.execute(tables.import_run.update().values(state="running", cursor="5"))
    again = running.import_from(str(path))
    assert (again.imported, again.resumed, again.useless) == (0, True, False)
    assert running.import_document(Document.of(b"[]")).useless


def test_a_page_that_prints_no_year_is_not_of_the_future(monkeypatch):
    class Today(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 10, tzinfo=tz)

    from nullius.feed.importers import page

    monkeypatch.setattr(page.datetime, "datetime", Today)
    for day, expected in (("Nov 4", "2025-10-13"), ("Jan 3", "2025-10-13")):
        (record,), _, _ = parsed(f"Daily Papers\n\n{day}\n\nA title\n\nAn abstract.\n\n• 2 authors\n·\nOct 13 2")
        assert (record.published.isoformat(), record.date_inferred) == (expected, True)
