"""`nullius digest`: plan, send and look at what goes out by mail. A scheduler need only call `nullius digest run` every few minutes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from nullius.errors import UsageError

if TYPE_CHECKING:
    from nullius.feed.digest.settings import MailSettings

app = typer.Typer(name="digest", help="Papers and verdicts by mail.", no_args_is_help=True, rich_markup_mode=None)


def _settings(need_server: bool = True) -> MailSettings:
    from nullius.feed.digest.settings import MailSettings, from_environment
    from nullius.paths import secret

    base_url = os.environ.get("NULLIUS_BASE_URL", "http://127.0.0.1:8000")
    found = from_environment(base_url, secret())
    if found is None:
        if need_server:
            raise UsageError("mail is not set up: set NULLIUS_SMTP=smtp://host:port and NULLIUS_MAIL_FROM=name@domain (docs/digest.md)")
        found = MailSettings("smtp://localhost", "nullius@localhost", base_url, secret())
    return found


@app.command()
def plan() -> None:
    """Plan what is due now; nothing is sent."""
    settings = _settings()
    from nullius.feed.digest import deliveries

    typer.echo(f"{deliveries.plan(settings)} planned")


@app.command()
def send(most: Annotated[int | None, typer.Option(help="Send at most so many.")] = None) -> None:
    """Send what is planned."""
    settings = _settings()
    from nullius.feed.digest import deliveries

    typer.echo(str(deliveries.send(settings, most=most)))


@app.command()
def run() -> None:
    """Plan and send: what a timer calls every few minutes."""
    settings = _settings()
    from nullius.feed.digest import deliveries

    typer.echo(f"{deliveries.plan(settings)} planned; {deliveries.send(settings)}")


@app.command()
def unknown() -> None:
    """List the mails of which nobody knows whether they were taken: their sender was killed, or the connection broke, at the last moment."""
    from nullius.feed.digest import watching

    for one in watching.unknown(limit=1000):
        typer.echo(f"{one['claimed_at']}  {one['email']}  {one['what']}, {one['period_key']}  {one['message_id']}  {one['error']}")


@app.command()
def preview(subscription: Annotated[str, typer.Argument(help="The id of a subscription.")]) -> None:
    """Print the mail that a subscription would get now."""
    settings = _settings(need_server=False)
    from nullius.feed.digest import deliveries, subscriptions

    if subscriptions.describe(subscription) is None:
        raise UsageError(f"there is no subscription {subscription}")
    typer.echo(deliveries.preview(settings, subscription) or "nothing new: no mail would be sent")


@app.command()
def bounces(source: Annotated[str, typer.Argument(help="A message, an mbox, a maildir, or - for standard input.")]) -> None:
    """Read reports of mail that did not arrive or was not wanted."""
    settings = _settings()
    from nullius.feed.digest import bounces as reports

    counts: dict[str, int] = {}
    for report in reports.read(source):
        kind = reports.take(settings, report)
        counts[kind] = counts.get(kind, 0) + 1
    typer.echo(", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "no reports")
