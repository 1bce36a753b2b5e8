"""Mail that pages ask for: sign-in links and confirmations, sent by the feed's transport; a server that is not set up for mail says so."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from email.utils import make_msgid

from nullius.errors import UsageError
from nullius.feed.digest import message, transport
from nullius.feed.digest.settings import MailSettings, from_environment
from nullius.web.problems import Problem
from nullius.web.settings import Settings

log = logging.getLogger("nullius.web")
_WORD, _LABEL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+", r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# RFC 5321 without quotes and literals, in ASCII: what every server takes; `=?` would begin an encoded word of a header
_ADDRESS = re.compile(rf"(?!.{{65,}}@)(?!.*=\?){_WORD}(?:\.{_WORD})*@(?:{_LABEL}\.)+(?:[A-Za-z]{{2,63}}|xn--[A-Za-z0-9-]{{1,59}})")


def setup(settings: Settings) -> MailSettings | None:
    """Return how mail leaves (NULLIUS_SMTP, NULLIUS_MAIL_FROM), None where it does not; `trouble` says why."""
    try:
        return from_environment(settings.base_url, settings.secret)
    except UsageError as error:
        log.warning("%s", error)
        return None


def trouble(settings: Settings) -> str:
    """Return what is wrong with the way that mail is set up, '' where nothing is."""
    try:
        from_environment(settings.base_url, settings.secret)
    except UsageError as error:
        return f"{error}."
    return ""


def address(text: str) -> str:
    """Check an e-mail address. Raises Problem 422 for what is none."""
    text = text.strip()
    if len(text) > 254 or not _ADDRESS.fullmatch(text):
        raise Problem(422, "This is no e-mail address.", "Write it as name@host.")
    return text


def send(settings: Settings, to: str, subject: str, text: str) -> None:
    """Send a text now. Raises Problem 503 where no mail can be sent; that an address was refused is told to nobody."""
    how = setup(settings)
    if how is None:
        raise Problem(503, "This server cannot send mail.", "Tell who runs it: NULLIUS_SMTP and NULLIUS_MAIL_FROM are not set.")
    made = message.plain(how, to, subject, text, datetime.now(UTC), make_msgid(domain=how.host))
    try:
        with transport.Transport(how) as line:
            line.send(made, how.sender, to)
    except transport.PermanentFailure as refused:
        if not refused.address:
            raise Problem(503, "The mail was not taken.", "Tell who runs this server.") from None
    except transport.TemporaryFailure:
        raise Problem(503, "No mail can be sent just now.", "Try again in some minutes.") from None
    except transport.UnknownOutcome:
        return


def sign_in(settings: Settings, email: str, link: str) -> None:
    """Send a sign-in link."""
    text = f"Sign in to nullius:\n\n{link}\n\nThe link works once, for 15 minutes. If you did not ask for it, nothing happens.\n"
    send(settings, email, "Sign in to nullius", text)
