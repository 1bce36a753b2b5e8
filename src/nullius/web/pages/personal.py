"""A reader's own pages: library, account, sign-in."""

from __future__ import annotations

import csv
import io
from typing import Any

import sqlalchemy as sa
from starlette.responses import RedirectResponse, Response

from nullius.feed import library as feed_library
from nullius.feed import tables
from nullius.feed.database import reading, writing
from nullius.lab import journal
from nullius.lab.records import dumps
from nullius.web import citing, limiting, mailing, shelf, signing, who
from nullius.web.pages import subscribing
from nullius.web.problems import Problem
from nullius.web.site import Answer, Visit, get, page, post, see

LINKS_AN_HOUR = 5  # that sign somebody in, to one address


@page("/library", "library.html")
def library(visit: Visit) -> Answer:
    """What a reader saved, with notes and what is read."""
    visit.need("account")
    collection = visit.query("collection") or None
    unread, after = bool(visit.query("unread")), visit.query("after")[:40]
    found = feed_library.saved_papers(
        visit.person.account, collection=collection, unread=unread, subject=visit.subject, limit=101, after=after
    )
    rows = [
        {"paper": shelf.shown(e.card, visit.subject), **{n: getattr(e, n) for n in ("created", "note", "read_at", "collection")}}
        for e in found
    ]
    return {
        "schema": "nullius.web.library/1",
        "saved": rows[:100],
        "after": rows[99]["created"] if len(rows) > 100 else None,
        "collections": feed_library.collections(visit.person.account),
        "collection": collection,
        "unread": unread,
    }


@post("/library/{key:path}")
def annotate(visit: Visit) -> Response:
    """Change what is kept beside a saved paper."""
    visit.need("save")
    found = shelf.paper(visit.params["key"])
    note, collection = visit.form.get("note", "")[:5000], visit.form.get("collection", "").strip()[:100]
    feed_library.save(visit.person.account, found["id"], note=note, collection=collection, read=visit.form.get("read") == "1")
    return visit.back("/library")


@get("/library.{form}")
def export_library(visit: Visit) -> Response:
    """The library as BibTeX, RIS, CSL-JSON or CSV."""
    visit.need("account")
    found = feed_library.saved_papers(visit.person.account, limit=10_000)
    form = {"bib": "bibtex", "ris": "ris", "csl": "csl", "csv": "csv"}.get(visit.params["form"])
    if form is None:
        raise Problem(404, "A library comes as .bib, .ris, .csl or .csv.", "", ("/library", "Library"))
    full = [shelf.full(entry.card.id) for entry in found]
    if form != "csv":
        text, kind = citing.many(full, form)
    else:
        out = io.StringIO()
        table = csv.writer(out)
        table.writerow(["key", "title", "authors", "published", "arxiv", "doi", "note", "collection", "read", "saved"])
        for entry, about in zip(found, full, strict=True):
            row = [about["key"], about["title"], "; ".join(about["authors"]), about["published"], about["arxiv_id"], about["doi"]]
            table.writerow([_plain(cell) for cell in [*row, entry.note, entry.collection, entry.read_at, entry.created]])
        text, kind = out.getvalue(), "text/csv; charset=utf-8"
    headers = {"Content-Disposition": f'attachment; filename="library.{visit.params["form"]}"'}
    return Response(text, media_type=kind, headers=headers)


def _plain(cell: Any) -> str:
    """A cell that a spreadsheet takes for text, not for a formula."""
    text = "" if cell is None else str(cell)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


@page("/account", "account.html")
def account(visit: Visit) -> Answer:
    """Sessions, tokens, connected sign-ins, export, deletion."""
    visit.need("account")
    return {"schema": "nullius.web.account/1", **_account(visit), "scopes": list(who.SCOPES), "token": None}


def _account(visit: Visit) -> dict[str, Any]:
    own = visit.person.account
    with reading() as connection:

        def rows(table: sa.Table, *names: str) -> list[dict[str, Any]]:
            query = sa.select(*(table.c[name] for name in names)).where(table.c.account == own)
            return [dict(row) for row in connection.execute(query).mappings()]

        sessions = rows(tables.session, "sha256", "agent", "created", "seen", "expires")
        tokens = rows(tables.api_token, "id", "name", "scopes", "created", "expires", "used_at")
        identities = rows(tables.identity, "provider", "name", "created")
    for session in sessions:
        session["here"] = session["sha256"] == visit.person.session
        session["id"] = session.pop("sha256")[:16]
    me = {"name": visit.person.name, "email": visit.person.email, "role": visit.person.role}
    return {"me": me, "sessions": sessions, "tokens": tokens, "identities": identities, "shared": visit.settings.shared}


@post("/account/tokens")
def make_token(visit: Visit) -> Answer:
    """Make a token; it is shown on the page that answers, and never again."""
    visit.need("account")
    scopes = [name for name in who.SCOPES if visit.form.get(f"scope-{name}")]
    token = who.make_token(visit.person.account, visit.form.get("name", ""), scopes)
    return {"template": "account.html", "schema": "nullius.web.account/1", **_account(visit), "scopes": list(who.SCOPES), "token": token}


@post("/account/tokens/{id}/revoke")
def revoke_token(visit: Visit) -> Response:
    """Make a token worthless."""
    visit.need("account")
    who.drop_token(visit.params["id"], visit.person.account)
    return see("/account")


@post("/account/sessions/{id}/end")
def end_session(visit: Visit) -> Response:
    """End one of one's sessions, known by the beginning of its hash."""
    visit.need("account")
    beginning = visit.params["id"]
    if len(beginning) < 16 or not beginning.isalnum():
        raise Problem(404, "There is no such session.")
    own = tables.session.c.account == visit.person.account
    with writing() as connection:
        connection.execute(tables.session.delete().where(own, tables.session.c.sha256.startswith(beginning, autoescape=True)))
    return see("/account")


@post("/account/identities/{provider}/disconnect")
def disconnect(visit: Visit) -> Response:
    """Disconnect a sign-in."""
    visit.need("account")
    identity = tables.identity
    with writing() as connection:
        mine = sa.and_(identity.c.account == visit.person.account, identity.c.provider == visit.params["provider"])
        connection.execute(identity.delete().where(mine))
    return see("/account")


@get("/account/export")
def export(visit: Visit) -> Response:
    """Everything that is kept about an account, as JSON."""
    visit.need("account")
    own = visit.person.account
    data: dict[str, Any] = {"schema": "nullius.account/1", "exported": journal.now()}
    with reading() as connection:
        for table in (tables.account, tables.vote, tables.saved, tables.note, tables.identity, tables.api_token, tables.session):
            column = table.c.id if table is tables.account else table.c.account
            rows = connection.execute(sa.select(table).where(column == own)).mappings()
            data[table.name] = [{name: value for name, value in row.items() if name != "sha256"} for row in rows]
    data["run"] = [
        {n: r[n] for n in ("id", "slug", "asked_subject", "state", "started")} for r in journal.list_runs(limit=10_000, account=own)
    ]
    data["subscription"] = subscribing.own(visit)
    text = dumps(_dated(data), indent=1)
    return Response(text, media_type="application/json", headers={"Content-Disposition": 'attachment; filename="account.json"'})


def _dated(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _dated(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_dated(entry) for entry in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


@post("/account/delete")
def delete(visit: Visit) -> Response:
    """Delete an account: votes, library, sessions, tokens and links to sign in go; notes stay without a name; runs stay, they are results.

    What comes by mail goes on until it is left: it belongs to an address, whose owner has said yes.
    """
    visit.need("account")
    if not visit.settings.shared:
        raise Problem(422, "A local server has no account to delete.", "Its data are in the data folder of nullius.")
    if visit.form.get("sure") != "delete":
        raise Problem(422, "Write the word delete to delete the account.", "", ("/account", "Account"))
    own = visit.person.account
    with reading() as connection:
        voted = list(connection.execute(sa.select(tables.vote.c.paper).where(tables.vote.c.account == own)).scalars())
    for paper_id in voted:
        feed_library.unvote(own, paper_id)
    with writing() as connection:
        connection.execute(tables.note.update().where(tables.note.c.account == own).values(account=None))
        for table in (tables.saved, tables.session, tables.api_token, tables.identity):
            connection.execute(table.delete().where(table.c.account == own))
        connection.execute(
            tables.ticket.delete().where(tables.ticket.c.email == visit.person.email.lower(), tables.ticket.c.purpose == "signin")
        )
        connection.execute(tables.subscription.update().where(tables.subscription.c.account == own).values(account=None))
        connection.execute(tables.account.delete().where(tables.account.c.id == own))
    return _signed_out(visit)


@post("/signout")
def sign_out(visit: Visit) -> Response:
    """End this session."""
    if visit.person.session:
        who.close_session(visit.person.session, visit.person.account)
    return _signed_out(visit)


def _signed_out(visit: Visit) -> Response:
    response = see("/")
    response.delete_cookie(visit.settings.cookie, path="/", secure=visit.settings.secure, httponly=True, samesite="lax")
    return response


@page("/signin", "signin.html")
def sign_in(visit: Visit) -> Answer:
    """Ask for a link, or choose a connected sign-in."""
    if not visit.settings.shared:
        raise Problem(404, "A local server has no accounts.", "Open the one-time address that `nullius web` printed.")
    return {
        "schema": "nullius.web.signin/1",
        "providers": signing.providers(),
        "sent": False,
        "mail": mailing.setup(visit.settings) is not None,
    }


@post("/signin")
def send_link(visit: Visit) -> Answer:
    """Send a link. The answer is the same whether the address is known or not."""
    if not visit.settings.shared:
        raise Problem(404, "A local server has no accounts.")
    limiting.mail(visit.request, visit.settings)
    email = mailing.address(visit.form.get("email", ""))
    said = {"template": "signin.html", "schema": "nullius.web.signin/1", "providers": signing.providers(), "sent": True, "mail": True}
    if who.tickets("signin", email, hours=1) >= LINKS_AN_HOUR:  # whoever asks: nobody's letterbox is to be filled from here
        return said
    key = who.make_ticket("signin", email, minutes=15)
    mailing.sign_in(visit.settings, email, f"{visit.settings.base_url}/signin/link?key={key}")
    return said


@page("/signin/link", "signin_link.html")
def link(visit: Visit) -> Answer:
    """Where a mailed link leads: a button, since mail programs follow links by themselves."""
    return {"schema": "nullius.web.signin-link/1", "key": visit.query("key")[:200]}


@post("/signin/link")
def use_link(visit: Visit) -> Response:
    """Sign in with a link, which works once."""
    ticket = who.use_ticket(visit.form.get("key", ""), "signin")
    if ticket is None or not visit.settings.shared:
        raise Problem(403, "This link was used already, or is older than 15 minutes.", "Ask for a new one.", ("/signin", "Sign in"))
    return signed_in(visit, who.account_for(ticket["email"], visit.settings))


def signed_in(visit: Visit, account_id: str, path: str = "/") -> RedirectResponse:
    """Open a new session in place of the present one, and set its cookie."""
    key = who.open_session(account_id, visit.request.headers.get("user-agent", ""), instead_of=visit.person.session)
    response = see(path)
    flags: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": visit.settings.secure, "path": "/"}
    response.set_cookie(visit.settings.cookie, key, max_age=who.SESSION_DAYS * 86400, **flags)
    return response
