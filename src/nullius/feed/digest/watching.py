"""What a maintainer sees of the mail: addresses with what came back from them, deliveries of which nobody knows whether they arrived."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nullius.feed.database import reading
from nullius.feed.digest.message import what
from nullius.feed.tables import DELIVERY_STATES, SUBSCRIPTION_STATES, address, bounce, delivery, subscription

REPORTS = 5  # of one address, newest first


def addresses(*, troubled: bool = False, limit: int = 100, before: int | None = None) -> list[dict[str, Any]]:
    """Return addresses, newest first, each with its subscriptions by state and its newest bounces. troubled: only those that bounced, complained or
    are suppressed. before: the `id` of the last entry of the page before.
    """
    query = sa.select(address).order_by(address.c.id.desc()).limit(limit)
    query = query if before is None else query.where(address.c.id < before)
    if troubled:
        query = query.where(sa.or_(address.c.suppressed_at.is_not(None), address.c.id.in_(sa.select(bounce.c.address))))
    states = sa.select(subscription.c.address, subscription.c.state, sa.func.count()).group_by(subscription.c.address, subscription.c.state)
    reports = sa.select(*(bounce.c[name] for name in ("address", "class_", "status", "diagnostic", "at")))
    with reading() as connection:
        found = {row["id"]: dict(row) for row in connection.execute(query).mappings()}
        for row in found.values():
            row |= {"subscriptions": dict.fromkeys(SUBSCRIPTION_STATES, 0), "bounces": []}
        for owner, state, number in connection.execute(states.where(subscription.c.address.in_(found))):
            found[owner]["subscriptions"][state] = number
        reports = reports.where(bounce.c.address.in_(found)).order_by(bounce.c.at.desc(), bounce.c.id.desc())
        for report in connection.execute(reports).mappings():
            kept = found[report["address"]]["bounces"]
            if len(kept) < REPORTS:
                kept.append({"class": report["class_"], **{name: report[name] for name in ("status", "diagnostic", "at")}})
    return list(found.values())


def unknown(limit: int = 100) -> list[dict[str, Any]]:
    """Return deliveries that may or may not have arrived, newest first: they are never sent again by themselves."""
    names = [delivery.c[name] for name in ("id", "period_key", "attempts", "claimed_at", "error", "message_id")]
    query = sa.select(*names, subscription.c.kind, subscription.c.target, address.c.email)
    query = query.join(subscription, subscription.c.id == delivery.c.subscription).join(address, address.c.id == subscription.c.address)
    with reading() as connection:
        rows = connection.execute(query.where(delivery.c.state == "unknown").order_by(delivery.c.id.desc()).limit(limit)).mappings()
        return [{**row, "what": what(row["kind"], row["target"])} for row in rows]


def counts() -> dict[str, int]:
    """Return how many deliveries are in each state."""
    query = sa.select(delivery.c.state, sa.func.count()).group_by(delivery.c.state)
    with reading() as connection:
        return dict.fromkeys(DELIVERY_STATES, 0) | {row[0]: row[1] for row in connection.execute(query)}


def suspended(email: str) -> int:
    """Return how many subscriptions of an address are suspended since its mail came back."""
    query = sa.select(sa.func.count()).select_from(subscription.join(address, address.c.id == subscription.c.address))
    query = query.where(sa.func.lower(address.c.email) == email.lower(), subscription.c.state == "suspended")
    with reading() as connection:
        return int(connection.execute(query).scalar_one())


def listed() -> list[dict[str, Any]]:
    """Return all subscriptions, as rows with their `email`: what the owner of a local server sees."""
    query = sa.select(subscription, address.c.email).join(address, address.c.id == subscription.c.address)
    with reading() as connection:
        return [dict(row) for row in connection.execute(query.order_by(subscription.c.id).limit(1000)).mappings()]
