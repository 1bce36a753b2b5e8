"""One connection to an SMTP server, and what became of each message: taken, refused for now, refused for good, or nobody knows."""

from __future__ import annotations

import contextlib
import smtplib
import ssl
import time
from email import policy
from email.message import EmailMessage
from types import TracebackType

from nullius.feed.digest.settings import MailSettings, Server
from nullius.feed.digest.signing import signed

SECONDS = 60.0  # to wait for an answer
PER_SECOND = 10.0
UNFOLDED = policy.SMTP.clone(max_line_length=990)  # RFC 5322 allows 998; a folded Message-ID is legal, and trips programs up


class TemporaryFailure(Exception):
    """The message was not taken and may be offered again later."""


class PermanentFailure(Exception):
    """The recipient's address was refused for good (5xx at RCPT), or the message was."""

    def __init__(self, text: str, *, address: bool) -> None:
        super().__init__(text)
        self.address = address  # whether it is the address that was refused


class UnknownOutcome(Exception):
    """The connection broke after the whole message had been sent: it may have been taken. It must not be sent again."""


class Transport:
    """Sends messages over one connection, opened when first needed and again after it broke; at most `per_second`."""

    def __init__(self, settings: MailSettings, per_second: float = PER_SECOND) -> None:
        self.settings, self.server, self.per_second = settings, Server.of(settings), per_second
        self._smtp: smtplib.SMTP | None = None
        self._next = 0.0

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take leave of the server."""
        if self._smtp is not None:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                self._smtp.quit()
            self._smtp = None

    def send(self, message: EmailMessage, envelope_sender: str, recipient: str) -> None:
        """Send a message, signed where a key is set up. Raises TemporaryFailure, PermanentFailure or UnknownOutcome when it was not, or not surely,
        taken, and UsageError before anything is said when it cannot be signed.
        """
        text = signed(self.settings, message.as_bytes(policy=UNFOLDED))
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + 1 / self.per_second
        try:
            smtp = self._connected()
            smtp.ehlo_or_helo_if_needed()
            _expect(smtp.mail(envelope_sender), address=False)
            _expect(smtp.rcpt(recipient), address=True)
            code, answer = smtp.docmd("data")
            if code != 354:
                _expect((code, answer), address=False)
        except (PermanentFailure, TemporaryFailure):
            self._reset()
            raise
        except (OSError, smtplib.SMTPException) as error:
            self._drop()
            raise TemporaryFailure(_line(error)) from None
        self._send_data(smtp, text)

    def _send_data(self, smtp: smtplib.SMTP, text: bytes) -> None:
        """Hand the text over. From its last byte on, silence means that nobody knows."""
        stuffed = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in text.split(b"\r\n"))
        try:
            smtp.send(stuffed if stuffed.endswith(b"\r\n") else stuffed + b"\r\n")
        except (OSError, smtplib.SMTPException) as error:  # without the final dot no server takes a message
            self._drop()
            raise TemporaryFailure(_line(error)) from None
        try:
            smtp.send(b".\r\n")
            reply = smtp.getreply()
        except (OSError, smtplib.SMTPException) as error:
            self._drop()
            raise UnknownOutcome(_line(error)) from None
        _expect(reply, address=False)

    def _connected(self) -> smtplib.SMTP:
        if self._smtp is None:
            server, context = self.server, ssl.create_default_context()
            if server.tls:
                smtp: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=SECONDS, context=context)
            else:
                smtp = smtplib.SMTP(server.host, server.port, timeout=SECONDS)
                smtp.ehlo()
                if not server.local:
                    if not smtp.has_extn("starttls"):
                        smtp.close()
                        raise TemporaryFailure(f"{server.host} offers no encryption, and mail leaves this machine only encrypted")
                    smtp.starttls(context=context)
            if server.user:
                smtp.login(server.user, server.password)
            self._smtp = smtp
        return self._smtp

    def _reset(self) -> None:
        try:
            if self._smtp is not None:
                self._smtp.rset()
        except (OSError, smtplib.SMTPException):
            self._drop()

    def _drop(self) -> None:
        if self._smtp is not None:
            self._smtp.close()
            self._smtp = None


def _expect(reply: tuple[int, bytes], *, address: bool) -> None:
    code, text = reply
    if 200 <= code < 300:
        return
    told = f"{code} {text.decode('utf-8', 'replace')}"[:500]
    if 500 <= code < 600:
        raise PermanentFailure(told, address=address)
    raise TemporaryFailure(told)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
