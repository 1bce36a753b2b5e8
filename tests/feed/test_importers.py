"""Importing documents: every format, and everything that can be wrong with one."""

import datetime
import gzip
import io
import json

import pytest

from nullius.errors import UsageError
from nullius.feed import database as feed_database
from nullius.feed import papers, tables
from nullius.feed.importers import running, sources, store
from nullius.feed.importers.decode import Document
from nullius.feed.importers.records import Record

from .documents import DOCUMENTS, HF, everything, parsed
from .made import add_papers, paper
from .source_server import atom, daily, entry, oai


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_importing_twice_is_importing_once(database, kind):
    document = DOCUMENTS[kind].encode()
    first = running.import_document(Document.of(document))
    assert (first.imported, first.new, first.rejected, first.error) == (5, 5, 0, "")
    before = everything()
    second = running.import_document(Document.of(document))
    assert (second.imported, second.new, second.changed) == (5, 0, 0)
    assert everything() == before


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "utf-8"])
def test_encodings_marks_and_line_ends(kind, encoding):
    text = (
        DOCUMENTS[kind]
        .replace("Paper number 2", "Größe – “2”")
        .replace("\\u00f6", "ö")
        .replace("\n", "\r\n")
        .replace(' encoding="UTF-8"', "")
    )
    document = Document.of(text.encode(encoding))
    found = [one for one in sources.parse(document) if isinstance(one, Record)]
    assert len(found) == 5
    assert found[1].title == "Größe – “2”"
    assert bool(document.warnings) == (encoding == "cp1252")


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_nuls_and_lone_surrogates_are_dropped(kind):
    text = DOCUMENTS[kind].replace("number 3", "num\0ber 3")
    records, rejects, error = parsed(text.replace("number 4", "number\\ud800 4") if kind == "json" else text)
    assert (len(records), rejects, error) == (5, [], "")
    assert records[2].title == "Paper number 3"
    assert records[3].title == "Paper number 4"


def test_bytes_that_are_no_utf8_in_the_middle(sqlite):
    content = HF.encode().replace(b"Paper number 3", b"Caf\xe9 number 3")
    report = running.import_document(Document.of(content))
    assert report.imported == 5
    assert papers.get(papers.find("2401.00003").id).card.title == "Café number 3"
    assert "Windows-1252" in report.warnings[0]


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_whole_records_before_a_break_are_kept(kind):
    text = DOCUMENTS[kind]
    for cut in range(0, len(text) - 1, 97):
        records, rejects, error = parsed(text[:cut])
        assert len(records) <= 5
        assert kind == "bibtex" or error, cut
        assert [record.title for record in records] == [f"Paper number {number}" for number in range(1, len(records) + 1)]
        assert kind == "bibtex" or not rejects
    records, _, error = parsed(text[: text.index("Paper number 4")])
    assert len(records) == 3


BAD = [
    ({"id": "nonsense"}, "no arXiv id"),
    ({"id": None}, "no id"),
    ({"title": ""}, "no title"),
    ({"title": 7}, "title is int"),
    ({"publishedAt": "2024-02-31T00:00:00Z"}, "is no day"),
    ({"publishedAt": "99999-01-01"}, "is no day"),
    ({"upvotes": "many"}, "is no count"),
    ({"upvotes": -1}, "is no count"),
    ({"authors": "A and B"}, "not a list"),
    ({"summary": ["x"]}, "abstract is list"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_one_bad_record_among_good_ones(database, change, reason):
    listed = json.loads(HF)
    listed[2]["paper"] |= change
    if "title" in change or "summary" in change:
        listed[2] |= dict.fromkeys(change, None)
    report = running.import_document(Document.of(json.dumps(listed).encode()))
    assert (report.imported, report.rejected, report.error) == (4, 1, "")
    (reject,) = running.rejects_of(report.id)
    assert reject["position"] == "record 3"
    assert reason in reject["reason"]
    assert 0 < len(reject["head"]) <= 200
    assert report.summary.startswith("4 imported, 1 rejected")


def test_a_deleted_record_marks_a_known_paper_and_no_other(database):
    add_papers(paper(1), paper(2))
    listed = [entry(1, deleted=True), entry(9, deleted=True)]
    for _ in range(2):
        running.import_document(Document.of(oai(listed, "").encode()))
        assert papers.get(papers.find("2401.00001").id).card.withdrawn
        assert not papers.get(papers.find("2401.00002").id).card.withdrawn
        with pytest.raises(papers.UnknownPaper):
            papers.find("2401.00009")


@pytest.mark.parametrize(
    "words", ["This paper has been withdrawn by the author", "Withdrawn due to an error", "This submission was withdrawn"]
)
def test_withdrawn_papers_say_so(words):
    (record,), _, _ = parsed(atom([entry(1, comment=words)], 1, 0))
    assert record.withdrawn
    (record,), _, _ = parsed(atom([entry(1, comment="We study withdrawn papers")], 1, 0))
    assert not record.withdrawn


def test_the_newest_version_wins_in_any_order_and_empty_overwrites_nothing(database):
    versions = [
        entry(1, version=number, title=f"Title {number}", abstract=f"Abstract {number}." if number != 3 else "") for number in (1, 2, 3)
    ]
    found = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        with feed_database.writing() as connection:
            connection.execute(tables.paper.delete().where(tables.paper.c.arxiv_id == "2401.00001"))
        for i in order:
            running.import_document(Document.of(atom([versions[i]], 1, 0).encode()))
        known = papers.get(papers.find("2401.00001").id)
        found.append((known.raw_title, known.version))
        assert known.abstract
        assert {origin.external_id for origin in known.origins} == {f"2401.00001v{number}" for number in (1, 2, 3)}
    assert found == [("Title 3", 3)] * 3


def test_markup_is_stored_as_it_came(sqlite):
    title = '<script>alert(1)</script> & $O(n^2)$ by Schr\\"odinger'
    running.import_document(Document.of(atom([entry(1, title=title)], 1, 0).encode()))
    found = papers.get(papers.find("2401.00001").id)
    assert found.raw_title == title
    assert found.card.title == "<script>alert(1)</script> & O(n²) by Schrödinger"


def test_addresses_are_http_or_nothing(sqlite):
    listed = json.loads(HF)
    listed[0]["paper"]["githubRepo"] = "javascript:alert(1)"
    running.import_document(Document.of(json.dumps(listed).encode()))
    assert papers.get(papers.find("2401.00001").id).card.code is None
    assert papers.get(papers.find("2401.00002").id).card.code == "https://github.com/x/y"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"hello world, this is prose", "no list of papers"),
        (b"<!doctype html><title>502 Bad Gateway</title><p>oops", "502 Bad Gateway"),
        (b"<rss><channel></channel></rss>", "neither an Atom feed"),
        (b'<!DOCTYPE f [<!ENTITY a "b">]><feed><entry>&a;</entry></feed>', "entities"),
        (b'<!DOCTYPE f SYSTEM "file:///etc/passwd"><feed/>', "entities"),
        (b"[" * 100_000, "breaks off"),
        (gzip.compress(b"x" * 300_000_000, 1, mtime=0), "larger than 200 MB unpacked"),
        (gzip.compress(HF.encode(), mtime=0)[:-200], "damaged gzip"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else repr(value[:16]),
)
def test_what_is_not_a_list_of_papers_is_said_in_one_line(content, said):
    records, _, error = parsed(content[:20] if content[:3] == b"x" else content)
    assert records == []
    assert said in error


def test_gzip_is_unpacked():
    assert len(parsed(gzip.compress(HF.encode()))[0]) == 5


def test_files_and_standard_input(sqlite, tmp_path):
    path = tmp_path / "papers.json"
    path.write_text(HF, "utf-8")
    assert running.import_from(str(path)).new == 5
    assert running.import_from("-", stdin=io.BytesIO(HF.encode())).imported == 5
    with pytest.raises(UsageError, match="there is no file"):
        running.import_from(str(tmp_path / "none"))
    assert [row["state"] for row in running.imports()] == ["done", "done"]


def test_a_killed_import_goes_on_behind_its_last_batch(sqlite, tmp_path, monkeypatch):
    path = tmp_path / "many.json"
    path.write_text(json.dumps([daily(entry(number)) for number in range(1, 1201)]), "utf-8")
    written = store.write

    def killed(connection, batch, today):
        if killed.batches == 2:
            raise KeyboardInterrupt
        killed.batches += 1
        return written(connection, batch, today)

    killed.batches = 0
    monkeypatch.setattr(store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        running.import_from(str(path))
    monkeypatch.setattr(store, "write", written)
    report = running.import_from(str(path))
    assert (report.imported, report.new) == (200, 200)


# --- BibTeX ----------------------------------------------------------------------------------------------------------------------------------

BIBTEX = r"""
@string{nips = "NeurIPS"}
@article{one, title={Gated {Linear} {A}ttention}, author={Yang, Songlin and {The Team} and others}, year=2023, month=dec, eprint={2312.06635v2},
  archivePrefix={arXiv}, primaryClass={cs.LG}}
@article{one, title={The same key again}}
@misc{open, title={Never closed, year=2023
@inproceedings{two, title={Schr{\"o}dinger at $n^2$}, author={Ada Lovelace}, date={2021-05-06}, booktitle=nips, doi={https://doi.org/10.1000/XYZ.}}
@misc{three, title={By its address}, url={https://arxiv.org/abs/2310.15910}, year={2023}}
@misc{four, title={In the journal}, journal={arXiv preprint arXiv:2501.00001}}
@misc{five, year={2020}}
@misc{six, title={An impossible day}, date={2021-02-31}}
"""


def test_bibtex_entries_and_what_is_wrong_with_others():
    records, rejects, error = parsed(BIBTEX)
    assert error == ""
    one, two, three, four = records
    assert (one.title, one.arxiv_id, one.version, one.primary_category) == ("Gated Linear Attention", "2312.06635", 2, "cs.LG")
    assert one.authors == ("Songlin Yang", "The Team")
    assert (one.published, one.date_inferred) == (datetime.date(2023, 12, 1), True)
    assert (two.title, two.doi, two.journal_ref) == (r"Schr{\"o}dinger at $n^2$", "10.1000/xyz", "NeurIPS")
    assert (two.published, two.date_inferred) == (datetime.date(2021, 5, 6), False)
    assert (three.arxiv_id, four.arxiv_id) == ("2310.15910", "2501.00001")
    assert [(reject.position, reject.reason.split("'")[0]) for reject in rejects] == [
        ("line 5", "the key "),
        ("line 6", "the entry is not closed or not well formed"),
        ("line 10", "no title"),
        ("line 11", "date "),
    ]


def test_a_long_bibliography_is_read_in_parts_with_its_lines_and_keys():
    lines = [
        "@string{j = {Journal}}",
        *(f"@misc{{k{number}, title={{T {number}}}, journal=j}}" for number in range(450)),
        "@misc{k3, title={Again}}",
    ]
    records, rejects, _ = parsed("\n".join(lines))
    assert [record.title for record in records] == [f"T {number}" for number in range(450)]
    assert records[-1].journal_ref == "Journal"
    assert [(reject.position, reject.reason) for reject in rejects] == [("line 452", "the key 'k3' was used before")]
