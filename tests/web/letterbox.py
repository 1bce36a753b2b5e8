"""A real SMTP server on loopback that keeps what arrives."""

from __future__ import annotations

import socket

from aiosmtpd.handlers import Message


class Box(Message):
    """Keeps what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.mails: list = []
        self.raw: list[bytes] = []  # as they came over the line

    async def handle_DATA(self, server, session, envelope) -> str:
        self.raw.append(envelope.original_content)
        return await super().handle_DATA(server, session, envelope)

    def handle_message(self, message) -> None:
        self.mails.append(message)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
