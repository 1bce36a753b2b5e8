"""Who asks, and what they may do: one table for pages, JSON and assistants alike.

Alone (the default) there are no accounts: whoever opens the one-time address that `nullius web` prints is the owner. On a shared server people
have accounts, sessions kept here (a cookie holds a random name, the database only its hash), and tokens with scopes for programs.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from ulid import ULID

from nullius.feed import tables
from nullius.feed.database import reading, writing
from nullius.lab.journal import now
from nullius.lab.schema import insert_new
from nullius.web.problems import Problem
from nullius.web.settings import Settings

Role = Literal["visitor", "member", "maintainer"]
RANK: dict[str, int] = {"visitor": 0, "member": 1, "maintainer": 2}
# What may be done from which rank on; the scope is what a token needs for it
RIGHTS: dict[str, tuple[Role, str]] = {
    "read": ("visitor", "read"),
    "subscribe": ("visitor", ""),
    "vote": ("member", "vote"),
    "save": ("member", "vote"),
    "note": ("member", "vote"),
    "account": ("member", ""),
    "run": ("member", "run"),
    "run-full": ("maintainer", "run"),
    "run-any": ("maintainer", "run"),
    "cancel-any": ("maintainer", "run"),
    "import": ("maintainer", ""),
    "merge": ("maintainer", ""),
    "bounces": ("maintainer", ""),
}
SCOPES = ("read", "vote", "run")
SESSION_DAYS, TOKEN_DAYS = 30, 365
WAITING, A_DAY = 2, 20  # runs of a member
OPEN_PATHS = ("/enter", "/health", "/health.json", "/favicon.ico")


@dataclass(frozen=True)
class Person:
    """account: id of an account ('' is the owner of a local server, and nobody). scopes: of a token; None is no token: everything of the role."""

    role: Role = "visitor"
    account: str = ""
    name: str = ""
    email: str = ""
    scopes: frozenset[str] | None = None
    session: str = ""  # hash of the session that this is

    def may(self, action: str) -> bool:
        """Whether this person may do something."""
        role, scope = RIGHTS[action]
        return RANK[self.role] >= RANK[role] and (self.scopes is None or (bool(scope) and scope in self.scopes))


NOBODY = Person()


def need(person: Person, action: str, settings: Settings) -> None:
    """Raise Problem 401 (nobody yet) or 403 unless a person may do something."""
    if person.may(action) and (settings.shared or action != "subscribe" or person.role != "visitor"):
        return
    if person.scopes is not None and RANK[person.role] >= RANK[RIGHTS[action][0]]:
        scope = RIGHTS[action][1]
        raise Problem(403, f"This token has no scope for that{f' ({scope})' if scope else ''}.", "Make one under /account.")
    if person.role == "visitor":
        if settings.shared:
            raise Problem(401, "This needs an account.", "Sign in; it takes one mail.", ("/signin", "Sign in"))
        raise Problem(401, "This page is open for reading only.", "Open the one-time address that `nullius web` printed in its terminal.")
    raise Problem(403, f"Only {RIGHTS[action][0]}s may do that.", "Ask a maintainer of this server.")


def identify(request: HTTPConnection, settings: Settings) -> Person:
    """Find out who asks, by session cookie or `Authorization: Bearer`. Raises Problem 401 for a token that is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer":
            raise Problem(401, "Only bearer tokens are known here.", "Make one under /account.", headers={"WWW-Authenticate": "Bearer"})
        return _by_token(token.strip(), settings)
    cookie = request.cookies.get(settings.cookie, "")
    if not cookie:
        return NOBODY
    return _by_session(cookie, settings) if settings.shared else _owner(cookie, settings)


# ------------------------------------------------------------------------------------------------------------------------ alone


def _signer(settings: Settings, purpose: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(settings.secret, salt=f"nullius {purpose}")


def key_to_enter(settings: Settings) -> str:
    """Make the key of a one-time address."""
    key = secrets.token_urlsafe(24)
    with writing() as connection:
        moment = _later(days=1)
        row = {"sha256": digest(key), "purpose": "enter", "created": now(), "expires": moment}
        connection.execute(tables.ticket.insert().values(**row))
    return key


def enter(key: str, settings: Settings) -> str:
    """Use a one-time key up, and return the cookie of the owner. Raises Problem 403 for a key that is unknown, used or old."""
    if settings.shared or use_ticket(key, "enter") is None:
        raise Problem(403, "This address was used already, or is not one of this server's.", "Start `nullius web` again for a new one.")
    return str(_signer(settings, "owner").dumps("owner"))


def _owner(cookie: str, settings: Settings) -> Person:
    try:
        _signer(settings, "owner").loads(cookie, max_age=SESSION_DAYS * 86400)
    except BadSignature:
        return NOBODY
    return Person("maintainer", tables.LOCAL, "you")


# ---------------------------------------------------------------------------------------------------------------------- shared


def digest(text: str) -> str:
    """What the database keeps of a secret."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _later(**span: float) -> str:
    return (datetime.now(UTC) + timedelta(**span)).isoformat(timespec="milliseconds")


def use_ticket(key: str, purpose: str) -> dict[str, Any] | None:
    """Use a link up that works once; None when it is unknown, old, used, or for something else."""
    ticket = tables.ticket
    good = (ticket.c.sha256 == digest(key), ticket.c.purpose == purpose, ticket.c.used_at.is_(None), ticket.c.expires > now())
    with writing() as connection:
        found = connection.execute(ticket.update().where(*good).values(used_at=now()).returning(ticket)).mappings().first()
        return dict(found) if found else None


def tickets(purpose: str, email: str, *, hours: float) -> int:
    """Return how many links of a purpose were made for an address in the last hours."""
    ticket, since = tables.ticket, _later(hours=-hours)
    query = sa.select(sa.func.count()).where(ticket.c.purpose == purpose, ticket.c.email == email.lower(), ticket.c.created > since)
    with reading() as connection:
        return int(connection.execute(query).scalar_one())


def make_ticket(purpose: str, email: str, *, minutes: float, payload: dict[str, Any] | None = None) -> str:
    """Make a link that works once, and return the secret in it."""
    key = secrets.token_urlsafe(32)
    row = {"sha256": digest(key), "purpose": purpose, "email": email.lower(), "payload": payload or {}, "created": now()}
    with writing() as connection:
        connection.execute(tables.ticket.insert().values(**row, expires=_later(minutes=minutes)))
    return key


def account_for(email: str, settings: Settings, name: str = "") -> str:
    """Return the id of the account with an e-mail address, made now if there is none. Those named as maintainers are maintainers."""
    email, name = email.strip().lower(), "".join(letter for letter in name if letter.isprintable()).strip()[:100]
    account = tables.account
    role = "maintainer" if email in settings.maintainers else "member"
    with writing() as connection:
        mine = sa.select(account).where(sa.func.lower(account.c.email) == email)
        if connection.execute(mine).first() is None:  # another sign-in may be making it at this moment
            insert_new(connection, account, [{"id": str(ULID()), "email": email, "name": name, "role": role, "created": now()}])
        found = connection.execute(mine).mappings().one()
        if role == "maintainer" and found["role"] != role:
            connection.execute(account.update().where(account.c.id == found["id"]).values(role=role))
        return str(found["id"])


def open_session(account: str, agent: str = "", instead_of: str = "") -> str:
    """Open a session and return the secret of its cookie. instead_of: hash of the session that it replaces (at each sign-in a new one)."""
    key = secrets.token_urlsafe(32)
    row = {
        "sha256": digest(key),
        "account": account,
        "agent": agent[:200],
        "created": now(),
        "seen": now(),
        "expires": _later(days=SESSION_DAYS),
    }
    with writing() as connection:
        if instead_of:
            connection.execute(tables.session.delete().where(tables.session.c.sha256 == instead_of))
        connection.execute(tables.session.insert().values(**row))
    return key


def close_session(sha256: str, account: str) -> None:
    """End one of an account's sessions."""
    with writing() as connection:
        connection.execute(tables.session.delete().where(tables.session.c.sha256 == sha256, tables.session.c.account == account))


def _person(row: Any, settings: Settings, **more: Any) -> Person:
    """Who an account is. On a shared server its rights are those of the settings now: a maintainer who is named no more is a member."""
    email = row["email"] or ""
    role: Role = row["role"]
    if settings.shared:
        role = "maintainer" if email.lower() in settings.maintainers else "member"
    return Person(role, row["id"], row["name"] or email.split("@")[0], email, **more)


def _by_session(cookie: str, settings: Settings) -> Person:
    session, account = tables.session, tables.account
    query = sa.select(account, session.c.sha256, session.c.seen).join(session, session.c.account == account.c.id)
    query = query.where(session.c.sha256 == digest(cookie), session.c.expires > now(), account.c.disabled_at.is_(None))
    with reading() as connection:
        found = connection.execute(query).mappings().first()
    if found is None:
        return NOBODY
    if found["seen"] < (datetime.now(UTC) - timedelta(hours=1)).isoformat():
        with writing() as connection:
            connection.execute(session.update().where(session.c.sha256 == found["sha256"]).values(seen=now()))
    return _person(found, settings, session=found["sha256"])


def _by_token(token: str, settings: Settings) -> Person:
    held, account = tables.api_token, tables.account
    query = sa.select(account, held.c.scopes, held.c.expires.label("token_expires")).join(held, held.c.account == account.c.id)
    with reading() as connection:
        found = connection.execute(query.where(held.c.sha256 == digest(token), account.c.disabled_at.is_(None))).mappings().first()
    if found is None or (found["token_expires"] and found["token_expires"] <= now()):
        raise Problem(401, "This token is unknown or has expired.", "Make one under /account.", headers={"WWW-Authenticate": "Bearer"})
    return _person(found, settings, scopes=frozenset(found["scopes"]))


def make_token(account: str, name: str, scopes: list[str], days: int = TOKEN_DAYS) -> str:
    """Make a token for programs and return it: it is shown once and kept as a hash. Raises Problem 422 for an unknown scope or no name."""
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Problem(422, f"Choose scopes out of {', '.join(SCOPES)}.")
    if not name.strip():
        raise Problem(422, "A token needs a name, so that you know it again.")
    token = f"nullius_{secrets.token_urlsafe(32)}"
    row = {"id": str(ULID()), "sha256": digest(token), "account": account, "name": name.strip()[:100], "scopes": sorted(set(scopes))}
    with writing() as connection:
        connection.execute(tables.api_token.insert().values(**row, created=now(), expires=_later(days=days)))
    return token


def drop_token(token_id: str, account: str) -> None:
    """Make one of an account's tokens worthless."""
    with writing() as connection:
        connection.execute(tables.api_token.delete().where(tables.api_token.c.id == token_id, tables.api_token.c.account == account))
