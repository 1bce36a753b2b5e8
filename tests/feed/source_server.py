"""A small HTTP server that speaks as Hugging Face and arXiv do, with the faults of real ones. Used by the importers' tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, str], bytes]


class Source:
    """What the server answers. faults: answers given first, one per request; requests: the addresses that were asked for."""

    def __init__(self) -> None:
        self.faults: list[Answer | str] = []
        self.requests: list[str] = []
        self.papers: list[dict] = []
        self.tokens_expire_after: int | None = None
        self.page = 3
        self.address = ""

    def answer(self, path: str, query: dict[str, str]) -> Answer:
        if path == "/api/daily_papers":
            start, limit = int(query.get("p", "0")) * int(query["limit"]), int(query["limit"])
            return (
                200,
                {"Content-Type": "application/json"},
                json.dumps([daily(one) for one in self.papers[start : start + limit]]).encode(),
            )
        if path == "/api/papers/search":
            found = [{"paper": daily(one)["paper"] | {"submittedOnDailyAt": None}} for one in self.papers[: int(query["limit"])]]
            return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        if path.startswith("/api/papers/"):
            (wanted,) = [one for one in self.papers if one["id"] == path.rsplit("/", 1)[1]]
            return 200, {"Content-Type": "application/json"}, json.dumps(daily(wanted)["paper"]).encode()
        if "id_list" in query:
            found = [entry(1, id=name, abstract=f"What {name} says.") for name in query["id_list"].split(",")]
            return 200, {"Content-Type": "application/atom+xml"}, atom(found, len(found), 0).encode()
        if path == "/api/query":
            start, size = int(query.get("start", "0")), int(query.get("max_results", "10"))
            return 200, {"Content-Type": "application/atom+xml"}, atom(self.papers[start : start + size], len(self.papers), start).encode()
        if path == "/oai":
            return 200, {"Content-Type": "text/xml"}, self._oai(query).encode()
        if path == "/moved":
            return 302, {"Location": query["to"]}, b""
        return 404, {}, b"nothing here"

    def _oai(self, query: dict[str, str]) -> str:
        start = 0
        if "resumptionToken" in query:
            start = int(query["resumptionToken"].removeprefix("from-"))
            if self.tokens_expire_after is not None and start >= self.tokens_expire_after:
                self.tokens_expire_after = None
                return oai_error("badResumptionToken", "The token has expired")
        elif not self.papers:
            return oai_error("noRecordsMatch", "")
        token = f"from-{start + self.page}" if start + self.page < len(self.papers) else ""
        return oai(self.papers[start : start + self.page], token)


def entry(number: int, **values) -> dict:
    """A paper as all three interfaces can tell it."""
    own = {
        "id": f"2401.{number:05}",
        "version": 1,
        "title": f"Paper number {number}",
        "abstract": f"We do thing {number}.\nIt works.",
        "deleted": False,
    }
    return own | {"authors": ["Ada Lovelace", "Kurt Gödel"], "day": f"2024-01-{number % 28 + 1:02}", "categories": "cs.CL cs.LG"} | values


def daily(entry: dict) -> dict:
    """An item of Hugging Face's list."""
    authors = [{"_id": f"{i}", "name": name, "hidden": False} for i, name in enumerate(entry["authors"])]
    authors.append({"_id": "h", "name": "Not Shown", "hidden": True})
    by = {"_id": "u", "fullname": "F", "avatarUrl": "https://x/y", "isPro": False, "type": "user"}
    inner = {
        "id": entry["id"],
        "title": entry["title"],
        "summary": entry["abstract"],
        "authors": authors,
        "discussionId": "d",
        "ai_keywords": ["k"],
    }
    inner |= {
        "publishedAt": f"{entry['day']}T14:15:51.000Z",
        "submittedOnDailyAt": "2025-11-04T01:00:00.000Z",
        "submittedOnDailyBy": by | {"user": "f"},
    }
    inner |= {"upvotes": 12, "ai_summary": "A machine says so.", "githubRepo": "https://github.com/x/y", "githubStars": 5}
    outer = {
        "title": entry["title"],
        "summary": entry["abstract"],
        "thumbnail": "https://x/z.png",
        "publishedAt": "2025-11-04T01:00:00.000Z",
    }
    return {"paper": inner, **outer, "numComments": 3, "submittedBy": by | {"name": "f"}, "isAuthorParticipating": False}


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def atom(entries: list[dict], total: int, start: int) -> str:
    """arXiv's answer to a search."""
    own = "".join(
        f"<entry><id>http://arxiv.org/abs/{entry['id']}v{entry['version']}</id><updated>2024-02-01T00:00:00Z</updated>"
        f"<published>{entry['day']}T14:15:51Z</published><title>{escaped(entry['title'])}</title><summary>  {escaped(entry['abstract'])}\n</summary>"
        + "".join(
            f"<author><name>{escaped(name)}</name><arxiv:affiliation>Somewhere</arxiv:affiliation></author>" for name in entry["authors"]
        )
        + f"<arxiv:comment>{escaped(entry.get('comment', '5 pages'))}</arxiv:comment><arxiv:doi>10.1000/{entry['id']}</arxiv:doi>"
        f'<link href="http://arxiv.org/abs/{entry["id"]}" rel="alternate"/><arxiv:primary_category term="{entry["categories"].split()[0]}"/>'
        + "".join(f'<category term="{term}"/>' for term in entry["categories"].split())
        + "</entry>"
        for entry in entries
    )
    names = 'xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom" xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"'
    counts = f"<opensearch:totalResults>{total}</opensearch:totalResults><opensearch:startIndex>{start}</opensearch:startIndex>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<feed {names}><title>query</title>{counts}{own}</feed>'


def atom_error() -> str:
    """arXiv's way of saying that a search was wrong."""
    inside = (
        "<id>http://arxiv.org/api/errors#incorrect_id_format_for_x</id><title>Error</title><summary>incorrect id format for x</summary>"
    )
    return f'<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"><entry>{inside}</entry></feed>'


def oai(entries: list[dict], token: str) -> str:
    """arXiv's answer to ListRecords in arXivRaw."""
    own = ""
    for entry in entries:
        status = ' status="deleted"' if entry["deleted"] else ""
        own += f"<record><header{status}><identifier>oai:arXiv.org:{entry['id']}</identifier><datestamp>2025-11-01</datestamp>"
        own += "<setSpec>cs:cs:CL</setSpec></header>"
        if not entry["deleted"]:
            day = f"{int(entry['day'][8:])} Jan 2024 10:00:00 GMT"
            versions = "".join(
                f'<version version="v{number}"><date>Mon, {day if number == 1 else "01 Feb 2024 10:00:00 GMT"}</date><size>1kb</size></version>'
                for number in range(1, entry["version"] + 1)
            )
            own += (
                f'<metadata><arXivRaw xmlns="http://arxiv.org/OAI/arXivRaw/"><id>{entry["id"]}</id><submitter>A</submitter>{versions}'
                f"<title>{escaped(entry['title'])}</title><authors>{escaped(' and '.join(entry['authors']))} (Princeton, NJ)</authors>"
                f"<categories>{entry['categories']}</categories><comments>{escaped(entry.get('comment', '5 pages'))}</comments>"
                f"<doi>10.1000/{entry['id']}</doi><license>x</license><abstract>  {escaped(entry['abstract'])}\n</abstract></arXivRaw></metadata>"
            )
        own += "</record>"
    head = '<?xml version="1.0" encoding="UTF-8"?><OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><responseDate>2025-11-01T00:00:00Z</responseDate>'
    return f"{head}<ListRecords>{own}<resumptionToken>{token}</resumptionToken></ListRecords></OAI-PMH>"


def oai_error(code: str, text: str) -> str:
    """arXiv's way of saying no."""
    return f'<?xml version="1.0"?><OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><error code="{code}">{text}</error></OAI-PMH>'


@contextmanager
def serving() -> Iterator[Source]:
    """Run the server on a free port of the loopback."""
    source = Source()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(source))
    source.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield source
    finally:
        server.shutdown()
        server.server_close()


def _handler(source: Source) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            source.requests.append(self.path)
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            fault = source.faults.pop(0) if source.faults else None
            if fault == "hang up":
                return
            status, headers, body = fault if isinstance(fault, tuple) else source.answer(parts.path, query)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "truncate" else body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
