"""Mail as a maintainer sees it: what came back from addresses, what may have been lost, and what is not set up."""

from __future__ import annotations

from typing import Any

from nullius.feed.digest import watching
from nullius.feed.digest.settings import MailSettings
from nullius.web import mailing
from nullius.web.site import Answer, Visit, page

ON_A_PAGE = 100


@page("/addresses", "addresses.html")
def addresses(visit: Visit) -> Answer:
    """Addresses with their bounces, deliveries of which nobody knows whether they arrived, and warnings."""
    visit.need("bounces")
    before = visit.integer("before", 0, 10**9 - 1) or None
    found = watching.addresses(troubled=bool(visit.query("troubled")), limit=ON_A_PAGE + 1, before=before)
    return {
        "schema": "nullius.web.addresses/1",
        "warnings": warnings(mailing.setup(visit.settings), mailing.trouble(visit.settings)),
        "counts": watching.counts(),
        "unknown": watching.unknown(),
        "addresses": [_plain(row) for row in found[:ON_A_PAGE]],
        "before": found[ON_A_PAGE - 1]["id"] if len(found) > ON_A_PAGE else None,
        "troubled": bool(visit.query("troubled")),
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    states = {name: number for name, number in row["subscriptions"].items() if number}
    return {**row, "subscriptions": states}


def warnings(how: MailSettings | None, trouble: str = "") -> list[str]:
    """What a maintainer should know of how mail leaves."""
    if trouble:
        return [f"This server sends no mail: {trouble}"]
    if how is None:
        return ["This server sends no mail: NULLIUS_SMTP and NULLIUS_MAIL_FROM are not set."]
    told = []
    if not how.one_click:
        told.append(
            "Mails leave without one-click unsubscription, since this site's address is not https. "
            "Gmail, Yahoo and Microsoft ask it of whoever sends 5 000 mails a day."
        )
    if not how.dkim_key:
        told.append("Mails are not signed here (NULLIUS_DKIM_KEY is not set): the relay must sign them, both List- headers included.")
    return told


def noticed(visit: Visit) -> str:
    """What whoever is signed in must be told on every page: that mail to them came back."""
    number = watching.suspended(visit.person.email) if visit.person.email else 0
    if not number:
        return ""
    return f"{number} of your subscriptions rest{'s' if number == 1 else ''}, since mail to {visit.person.email} came back."
