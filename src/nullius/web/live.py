"""Live runs: one look at the journal serves everybody who watches. Events resume by number (Last-Event-ID), and end with the run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from nullius.errors import NulliusError
from nullius.lab import journal, queue
from nullius.lab.records import dumps
from nullius.web.problems import Problem

log = logging.getLogger("nullius.web")
LOOK_SECONDS = 0.5
EACH_SECONDS = 0.01  # more for each who watches the same run: 200 see it every two seconds, and cost together what fifty do
COMMENT_SECONDS = 15.0
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass
class _Watch:
    """One run that is watched: its events so far, encoded once; `piece` is its progress as a fragment of a page."""

    run_id: str
    events: list[tuple[int, bytes]] = field(default_factory=list)
    piece: bytes = b""
    pieces: int = 0
    state: str = ""
    watchers: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return bool(self.state) and self.state not in queue.OPEN


class Live:
    """All runs that are watched now. draw: makes the fragment that shows a run's progress."""

    def __init__(self, draw: Callable[[str], str]) -> None:
        self.draw = draw
        self.watches: dict[str, _Watch] = {}

    async def _join(self, run_id: str) -> _Watch:
        watch = self.watches.get(run_id)
        if watch is None or watch.over:
            watch = self.watches[run_id] = _Watch(run_id)
            watch.task = asyncio.create_task(self._follow(watch))  # at once: who waits for the first look may go away meanwhile
            watch.watchers += 1
            try:
                await self._look(watch)
            except BaseException:
                self._leave(watch)
                raise
            return watch
        watch.watchers += 1
        return watch

    def _leave(self, watch: _Watch) -> None:
        watch.watchers -= 1
        if watch.watchers <= 0:
            if watch.task:
                watch.task.cancel()
            if self.watches.get(watch.run_id) is watch:
                del self.watches[watch.run_id]

    async def close(self) -> None:
        """Stop looking: the server ends."""
        for watch in list(self.watches.values()):
            watch.state = watch.state or "gone"
            if watch.task:
                watch.task.cancel()

    async def _follow(self, watch: _Watch) -> None:
        while not watch.over:
            await asyncio.sleep(max(LOOK_SECONDS, EACH_SECONDS * watch.watchers))
            try:
                await self._look(watch)
            except Exception:  # whoever watches must not be left before a picture that stands still
                log.exception("run %s cannot be followed", watch.run_id)

    async def _look(self, watch: _Watch) -> None:
        after = watch.events[-1][0] if watch.events else -1
        try:
            state, fresh, piece = await run_in_threadpool(self._read, watch.run_id, after)
        except NulliusError:  # a journal that is busy is read again in a moment
            return
        encoded = [(event["seq"], _encode(event)) for event in fresh]
        piece_bytes = _message(piece)
        if encoded or state != watch.state or piece_bytes != watch.piece:
            async with watch.changed:
                watch.events += encoded
                if piece_bytes != watch.piece:
                    watch.piece, watch.pieces = piece_bytes, watch.pieces + 1
                watch.state = state
                watch.changed.notify_all()

    def _read(self, run_id: str, after: int) -> tuple[str, list[dict[str, Any]], str]:
        journal.recover()
        state = queue.state(run_id) or "gone"
        fresh = journal.events(run_id, after)
        return state, fresh, self.draw(run_id) if state in queue.OPEN else ""

    async def events(self, request: Request, run_id: str) -> Response:
        """Answer with a run's events as JSON: step, note, state; then `ended`."""
        after = _after(request)

        async def stream() -> AsyncIterator[bytes]:
            watch, sent, state = await self._join(run_id), after, ""
            try:
                while True:
                    for seq, text in watch.events[_place(watch.events, sent) :]:
                        sent = seq
                        yield text
                    if watch.state != state:
                        state = watch.state
                        yield _message(dumps({"state": state}), event="ended" if watch.over else "state")
                    if watch.over:
                        return
                    seen = (len(watch.events), watch.state)
                    async for beat in _wait(watch, lambda seen=seen: (len(watch.events), watch.state) != seen):  # type: ignore[misc]
                        yield beat
            finally:
                self._leave(watch)

        return StreamingResponse(stream(), media_type="text/event-stream", headers=HEADERS)

    async def pieces(self, _request: Request, run_id: str) -> Response:
        """Answer with fragments of a page that show a run's progress; then `ended`."""

        async def stream() -> AsyncIterator[bytes]:
            watch, seen = await self._join(run_id), -1
            try:
                while True:
                    if watch.over:
                        yield _message("", event="ended")
                        return
                    if watch.pieces != seen:
                        seen = watch.pieces
                        yield watch.piece
                    async for beat in _wait(watch, lambda seen=seen: watch.pieces != seen or watch.over):  # type: ignore[misc]
                        yield beat
            finally:
                self._leave(watch)

        return StreamingResponse(stream(), media_type="text/event-stream", headers=HEADERS)


async def _wait(watch: _Watch, ready: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Wait until there is something new; meanwhile, now and then, a comment that keeps the connection open."""
    last = time.monotonic()
    while True:
        try:
            async with watch.changed:
                await asyncio.wait_for(watch.changed.wait_for(ready), COMMENT_SECONDS)
            return
        except TimeoutError:
            if time.monotonic() - last >= COMMENT_SECONDS:
                last = time.monotonic()
                yield b": still there\n\n"


def _after(request: Request) -> int:
    text = request.headers.get("last-event-id") or request.query_params.get("after") or "-1"
    try:
        number = int(text[:12])
    except ValueError:
        raise Problem(422, f"Last-Event-ID is a number, not '{text[:20]}'.") from None
    return max(-1, number)


def _place(events: list[tuple[int, bytes]], after: int) -> int:
    """Where in the list the first event stands that comes after a number: numbers rise by one."""
    return max(0, after + 1 - events[0][0]) if events else 0


def _encode(event: dict[str, Any]) -> bytes:
    return _message(dumps({"at": event["at"], **event["payload"]}), event=event["kind"], number=event["seq"])


def _message(text: str, event: str = "", number: int | None = None) -> bytes:
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {event}\n" if event else "")
    return (head + "".join(f"data: {line}\n" for line in text.split("\n")) + "\n").encode("utf-8", "replace")
