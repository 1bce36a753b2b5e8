"""The JSON API, continued: subscriptions, and imports for maintainers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path
from starlette.responses import Response

from nullius.feed.digest import subscriptions
from nullius.feed.digest.clock import Schedule
from nullius.feed.importers.running import imports
from nullius.web import shapes
from nullius.web.api import Asker, Limit, router
from nullius.web.pages import importing, subscribing
from nullius.web.problems import Problem


@router.get("/subscriptions", response_model=shapes.Subscriptions)
def subscribed(visit: Asker) -> Any:
    """One's own subscriptions by mail."""
    visit.need("account" if visit.person.scopes is None else "save")
    return {"subscriptions": subscribing.own(visit)}


@router.post("/subscriptions", response_model=shapes.Asked, status_code=202)
def subscribe(visit: Asker, wish: shapes.SubscriptionWish) -> Any:
    """Ask for a digest: one mail goes to the address, and nothing else before its owner has said yes."""
    when = Schedule(wish.schedule, wish.hour, wish.tz, wish.weekday)
    subscribing.asked(visit, wish.email, subscriptions.Wish(wish.kind, wish.target.strip(), when, wish.at_most))
    return {"asked": True, "atom": subscribing.atom(wish.kind, wish.target.strip())}


@router.delete("/subscriptions/{id}", status_code=204, response_class=Response)
def unsubscribe(visit: Asker, id: Annotated[str, Path(max_length=26)]) -> Response:
    """End one of one's own subscriptions."""
    visit.need("account" if visit.person.scopes is None else "save")
    subscriptions.leave(subscribing.owned(visit, id))
    return Response(status_code=204)


@router.get("/imports", response_model=shapes.Imports)
def imported(visit: Asker, limit: Limit = 20) -> Any:
    """What was imported, newest first."""
    visit.need("import")
    return {"imports": imports(limit)}


@router.post("/imports", response_model=shapes.ImportReport)
def import_(visit: Asker, wish: shapes.ImportWish) -> Any:
    """Import from an address of a source on the list, or a document given as text. What is good is kept; what is not is listed with the reason."""
    visit.need("import")
    made = importing.read(wish.text, wish.address, wish.date)
    if made.error and not made.seen:
        raise Problem(422, f"Nothing was imported: {made.error}.", f"The import is {made.id}; what it cannot take now it may take later.")
    return importing.told(made)
