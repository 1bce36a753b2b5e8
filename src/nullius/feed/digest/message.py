"""A digest as a mail: text and HTML, and the headers by which mail programs know it for what it is (RFC 2369, 2919, 3834, 8058)."""

from __future__ import annotations

from datetime import datetime
from email import policy
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from email.utils import format_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import jinja2

from nullius.feed.digest.clock import zone
from nullius.feed.digest.contents import Contents
from nullius.feed.digest.settings import MailSettings
from nullius.feed.shapes import Card

MOST_BYTES, HEAD_BYTES = 90_000, 4_000  # of a whole mail, and of its headers with a signature
PLAIN = bytes(code for code in range(32, 127) if code != ord("="))
KINDS = {
    "daily": "papers of the day",
    "trending": "what is trending",
    "search": "the search “{}”",
    "author": "papers by {}",
    "paper": "new verdicts on {}",
    "subject": "new verdicts on {}",
}


class _Headers(HeaderRegistry):
    """Headers, parsed once: most are the same in every mail of a round, and to parse them takes longer than to draw the mail."""

    def __init__(self) -> None:
        super().__init__()
        self._parsed = lru_cache(maxsize=256)(super().__call__)

    def __call__(self, name: str, value: Any) -> Any:
        return self._parsed(name, value)


_POLICY = policy.default.clone(header_factory=_Headers())


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("nullius.feed.digest")
    return jinja2.Environment(
        loader=loader, autoescape=lambda name: bool(name and name.endswith(".html")), undefined=jinja2.StrictUndefined
    )


def what(kind: str, target: str) -> str:
    """Return a subscription in words."""
    return KINDS[kind].format(target[:80])


def title(contents: Contents, at: datetime, tz: str) -> str:
    """Return the subject line, which says what is in the mail: "7 papers, 2 verdicts on smollm2-135m · Tue 4 Nov"."""
    parts = [
        f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((len(contents.papers), "paper"), (len(contents.verdicts), "verdict")) if n
    ]
    local = at.astimezone(zone(tz))
    about = f" on {contents.about}" if contents.verdicts and contents.about else ""
    return f"{', '.join(parts)}{about} · {local:%a} {local.day} {local:%b}"


def compose(settings: MailSettings, wanted: Any, contents: Contents, message_id: str, to: str, at: datetime) -> EmailMessage:
    """Return the mail of a subscription (a row of `subscription`)."""
    return fitting(settings, wanted, contents, message_id, to, at)[0]


def fitting(
    settings: MailSettings, wanted: Any, contents: Contents, message_id: str, to: str, at: datetime
) -> tuple[EmailMessage, tuple[Card, ...]]:
    """Return the mail of a subscription and the papers in it: they are left off, from the end, where it would grow too large."""
    token = settings.unsubscribe_token(wanted["id"])
    leave = f"{settings.base_url}/u/{token}"
    papers, verdicts = list(contents.papers), list(contents.verdicts)
    while True:
        shown = Contents(tuple(verdicts), tuple(papers), contents.about)
        values = {
            "title": title(shown, at, wanted["tz"]),
            "verdicts": verdicts,
            "papers": [_card(card) for card in papers],
            "base": settings.base_url,
            "what": what(wanted["kind"], wanted["target"]),
            "leave": leave,
        }
        text, html = (_templates().get_template(f"digest.{kind}").render(values) for kind in ("txt", "html"))
        if _encoded(text) + _encoded(html) <= MOST_BYTES - HEAD_BYTES or len(papers) + len(verdicts) <= 1:
            break
        (papers or verdicts).pop()
    message = EmailMessage(_POLICY)
    message["From"] = str(Address("nullius", addr_spec=settings.sender))
    message["To"] = str(Address(addr_spec=to))
    message["Subject"] = values["title"]
    message["Date"] = format_datetime(at)
    message["Message-ID"] = message_id
    message["List-Id"] = f"nullius {wanted['kind']} <{wanted['kind']}.{settings.host}>"
    where = f"<{leave}>, " if settings.one_click else ""
    message["List-Unsubscribe"] = f"{where}<mailto:unsubscribe@{settings.host}?subject={quote(token)}>"
    if settings.one_click:
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message["Auto-Submitted"] = "auto-generated"
    message["Precedence"] = "bulk"
    message.set_content(text, cte="quoted-printable")
    message.add_alternative(html, subtype="html", cte="quoted-printable")
    message["Content-Language"] = "en"  # last: Content- headers would move into the first part
    return message, tuple(papers)


def _encoded(text: str) -> int:
    """How many bytes a text has as quoted-printable, at most: three for each that is not plain, and line breaks of 76."""
    content = text.encode()
    size = len(content) + 2 * len(content.translate(None, PLAIN))
    return size + 3 * (size // 70)


def plain(settings: MailSettings, to: str, subject: str, text: str, at: datetime, message_id: str) -> EmailMessage:
    """Return a mail that somebody asked for just now: a confirmation, a sign-in link."""
    message = EmailMessage()
    message["From"] = Address("nullius", addr_spec=settings.sender)
    message["To"] = Address(addr_spec=to)
    message["Subject"] = subject
    message["Date"] = format_datetime(at)
    message["Message-ID"] = message_id
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text, cte="quoted-printable")
    return message


def _card(card: Card) -> dict[str, Any]:
    authors = "" if card.n_authors is None else f"{card.n_authors} author{'' if card.n_authors == 1 else 's'}"
    day = "" if card.published is None else f"{card.published.day} {card.published:%b %Y}"
    verdicts = ", ".join(f"{cell.word} {cell.claim}" for cell in card.cells[:3])
    meta = " · ".join(part for part in (authors, day, card.category or card.question or "", verdicts) if part)
    return {"title": " ".join(card.title.split()), "summary": " ".join(card.summary.split()), "meta": meta, "key": quote(card.key)}
