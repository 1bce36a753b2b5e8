"""Digests: the clock, subscriptions, and the mail as a server takes it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed import cards, tables
from nullius.feed.database import reading, writing
from nullius.feed.digest import clock, contents, deliveries, message, subscriptions
from nullius.feed.digest.clock import Schedule, current
from nullius.feed.digest.settings import MailSettings, unsubscribed
from nullius.feed.digest.subscriptions import Wish

from .postbox import DAILY, NOW, send, stand_on, states, subscribe

# --- clock --------------------------------------------------------------------------------------------------------------------------------

ZONES = ["UTC", "Europe/Rome", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]


@pytest.mark.parametrize("zone", ZONES)
def test_a_day_has_one_period_for_400_days(zone):
    """Asked every half hour for 400 days, the moments that come due are one for each local day, whatever the clocks do."""
    schedule, seen = Schedule("daily", 2, zone), {}
    start = datetime(2025, 1, 1, tzinfo=UTC)
    for half_hours in range(48 * 400):
        period = current(schedule, start + timedelta(minutes=30 * half_hours))
        seen.setdefault(period.key, set()).add(period.due)
    assert all(len(dues) == 1 for dues in seen.values())
    days = sorted(date.fromisoformat(key) for key in seen)
    assert all((b - a).days == 1 for a, b in pairwise(days))
    local = [next(iter(seen[day.isoformat()])).astimezone(ZoneInfo(zone)) for day in days]
    assert all(moment.hour == 2 or (moment.hour, moment.minute) in ((3, 0), (2, 30)) for moment in local)


def test_skipped_hour_is_the_next_valid_one_and_a_doubled_hour_comes_once():
    assert clock.due(date(2025, 3, 30), 2, "Europe/Rome") == datetime(2025, 3, 30, 1, tzinfo=UTC)  # 03:00 there
    assert clock.due(date(2025, 10, 26), 2, "Europe/Rome") == datetime(2025, 10, 26, 0, tzinfo=UTC)  # the first of two


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["daily", "weekdays", "weekly"]),
    st.integers(0, 23),
    st.integers(0, 6),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)),
)
def test_periods_follow_one_another(kind, hour, weekday, zone, at):
    schedule = Schedule(kind, hour, zone, weekday)
    now = at.replace(tzinfo=UTC)
    period = current(schedule, now)
    assert period.since < period.due <= now
    before = current(schedule, period.due - timedelta(seconds=1))
    assert before.due == period.since
    assert before.key != period.key
    assert now - period.due < timedelta(days={"daily": 1, "weekdays": 3, "weekly": 7}[kind], hours=25)


def test_late_start_sends_if_less_than_twelve_hours_late():
    period = current(Schedule("daily", 7, "UTC"), NOW)
    began = NOW - timedelta(days=3)
    assert clock.in_time(period, period.due + timedelta(hours=11, minutes=59), began)
    assert not clock.in_time(period, period.due + timedelta(hours=12), began)
    assert not clock.in_time(period, NOW, period.due)


def test_a_schedule_that_no_calendar_has_is_refused():
    for wrong in (Schedule("hourly", 7, "UTC"), Schedule("daily", 24, "UTC"), Schedule("daily", 7, "Mars/Olympus")):
        with pytest.raises(UsageError):
            wrong.check()


# --- subscribing --------------------------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_its_owner_said_yes(database, smtp):
    asked: list[str] = []
    subscriptions.request(
        "ada@reader.example", DAILY, smtp.settings, lambda to, _subject, text: asked.append(text), now=NOW - timedelta(days=1)
    )
    stand_on(date(2026, 2, 10), ["A paper"])
    assert deliveries.plan(smtp.settings, NOW) == 0
    token = asked[0].split("/subscribe/confirm/")[1].split()[0]
    assert "papers of the day" in (subscriptions.waiting(token, NOW) or "")
    assert subscriptions.confirm(token[:-1] + ("A" if token[-1] != "A" else "B"), NOW) is None
    assert subscriptions.confirm(token, NOW - timedelta(hours=20))
    assert subscriptions.confirm(token, NOW) is None  # once
    assert deliveries.plan(smtp.settings, NOW) == 1


def test_links_end_after_48_hours_and_three_a_day_are_all(sqlite, smtp):
    asked: list[str] = []
    for _ in range(5):
        subscriptions.request("ada@reader.example", DAILY, smtp.settings, lambda _to, _subject, text: asked.append(text), now=NOW)
    assert len(asked) == 3
    token = asked[0].split("/subscribe/confirm/")[1].split()[0]
    assert subscriptions.confirm(token, NOW + timedelta(hours=48, seconds=1)) is None


@pytest.mark.parametrize(
    "wish",
    [
        Wish("hourly", "", DAILY.schedule),
        Wish("search", " ", DAILY.schedule),
        Wish("daily", "x", DAILY.schedule),
        Wish("daily", "", DAILY.schedule, 0),
    ],
)
def test_a_wish_that_cannot_be_is_refused(wish):
    with pytest.raises(UsageError):
        wish.check()


def test_leaving_is_for_good_and_may_be_said_twice(sqlite, smtp):
    number = subscribe(smtp)
    token = smtp.settings.unsubscribe_token(number)
    assert unsubscribed(token, smtp.settings.secret) == number
    for i in range(0, len(token), 7):  # no other text leads anywhere
        flipped = token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :]
        assert unsubscribed(flipped, smtp.settings.secret) is None
    assert subscriptions.leave(number)
    assert subscriptions.leave(number)
    assert not subscriptions.pause(number)
    stand_on(date(2026, 2, 10), ["A paper"])
    assert deliveries.plan(smtp.settings, NOW) == 0


def test_pausing_ends_by_itself(sqlite, smtp):
    number = subscribe(smtp)
    assert subscriptions.pause(number, NOW)
    assert deliveries.plan(smtp.settings, NOW) == 0
    later = NOW + timedelta(days=31)
    assert deliveries.plan(smtp.settings, later) == 0  # it begins again, with the next period
    assert deliveries.plan(smtp.settings, later + timedelta(days=1)) == 1


# --- the mail -----------------------------------------------------------------------------------------------------------------------------


def test_the_mail_as_it_arrives(database, smtp):
    number = subscribe(smtp)
    stand_on(date(2026, 2, 10), ["Heads that <script>alert(1)</script> decide", "Another one"])
    assert deliveries.plan(smtp.settings, NOW) == 1
    assert deliveries.plan(smtp.settings, NOW) == 0
    assert send(smtp).counts == {"sent": 1}
    assert send(smtp).counts == {}
    sender, to, content = smtp.mails[0]
    assert to == "ada@reader.example"
    mail = smtp.parsed()[0]
    assert mail.get_content_type() == "multipart/alternative"
    text, html = mail.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert "<script>" in text.get_content()  # text is text
    assert "<script>" not in html.get_content()
    assert "http" not in html.get_content().replace("https://lab.example", "")  # no remote image, no other host
    assert len(content) < 90_000
    assert mail["Subject"] == "2 papers · Tue 10 Feb"
    assert mail["From"].addresses[0].addr_spec == "digest@lab.example"
    assert mail["To"] == "ada@reader.example"
    assert mail["Message-ID"] == smtp.settings.message_id(number, "2026-02-10")
    link = f"https://lab.example/u/{smtp.settings.unsubscribe_token(number)}"
    assert mail["List-Unsubscribe"].replace("\r\n", "").startswith(f"<{link}>, <mailto:")
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert (mail["Auto-Submitted"], mail["Precedence"], mail["Content-Language"]) == ("auto-generated", "bulk", "en")
    assert mail["List-Id"] == "nullius daily <daily.lab.example>"
    assert mail["Date"]
    assert smtp.settings.bounced(sender) is not None
    assert smtp.settings.bounced(sender.replace("bounces+", "bounces+7")) is None


def test_without_https_there_is_no_one_click(smtp):
    plain = MailSettings(smtp.settings.smtp, "digest@lab.example", "http://127.0.0.1:8000", b"s" * 32)
    wanted = {"id": "01X", "kind": "daily", "target": "", "tz": "UTC"}
    verdict = contents.NewVerdict("embers", "copying", "Copying", "holds", "smollm2-135m", "01R", 0.4, 0.3, None)
    mail = message.compose(plain, wanted, contents.Contents((verdict,), (), "smollm2-135m"), "<a@b>", "ada@reader.example", NOW)
    assert mail["List-Unsubscribe-Post"] is None
    assert mail["List-Unsubscribe"].startswith("<mailto:")
    assert mail["Subject"] == "1 verdict on smollm2-135m · Tue 10 Feb"
    assert "0.40 [0.30, …]" in mail.get_body(("plain",)).get_content()


def test_new_verdicts_come_before_new_papers(sqlite, smtp):
    numbers = tuple(stand_on(date(2026, 2, 10), ["First"]))
    verdict = contents.NewVerdict("embers", "copying", "Copying", "holds", "smollm2-135m", "01R", 0.4, 0.3, 0.5)
    with reading() as connection:
        both = contents.Contents((verdict,), cards.by_ids(connection, numbers, subject=""), "smollm2-135m")
    wanted = {"id": "01X", "kind": "daily", "target": "", "tz": "UTC"}
    mail = message.compose(smtp.settings, wanted, both, "<a@b>", "ada@reader.example", NOW)
    assert mail["Subject"] == "1 paper, 1 verdict on smollm2-135m · Tue 10 Feb"
    for kind, first, then in (("plain", "NEW VERDICTS", "PAPERS"), ("html", ">New verdicts<", ">Papers<")):
        text = mail.get_body((kind,)).get_content()
        assert 0 < text.index(first) < text.index(then)
    html = mail.get_body(("html",)).get_content()
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"<(img|link|script|iframe)|url\(|@import", html), "nothing remote, nothing that tells that it was read"


def test_a_paper_comes_once_and_an_empty_period_brings_no_mail(database, smtp):
    subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    send(smtp)
    tomorrow = NOW + timedelta(days=1)
    deliveries.plan(smtp.settings, tomorrow)
    assert send(smtp, tomorrow).counts == {}
    assert states() == {"sent": 1, "skipped": 1}
    assert len(smtp.mails) == 1


def test_a_search_an_author_and_what_is_trending(sqlite, smtp):
    for wish in (
        Wish("search", "quokkas", DAILY.schedule),
        Wish("author", "Ada Lovelace", DAILY.schedule),
        Wish("trending", "", DAILY.schedule),
    ):
        subscribe(smtp, wish=wish)
    found, other = stand_on(date(2026, 2, 9), ["Quokkas in language models", "Wombats"])
    with writing() as connection:
        connection.execute(
            tables.paper.update().where(tables.paper.c.id.in_((found, other))).values(added=clock.moment(NOW - timedelta(hours=5)))
        )
        connection.execute(tables.paper.update().values(heat=None))
        connection.execute(tables.paper.update().where(tables.paper.c.id == other).values(heat=1.0))
        connection.execute(tables.paper_author.insert().values(paper=other, position=0, name="Ada Lovelace", name_key="adalovelace"))
    with reading() as connection:
        rows = {row["kind"]: row for row in connection.execute(sa.select(tables.subscription)).mappings()}
        got = {kind: [card.id for card in contents.of(connection, row, NOW - timedelta(days=1), NOW).papers] for kind, row in rows.items()}
    assert got == {"search": [found], "author": [other], "trending": [other]}
