"""What a saved HTML page says: its title, the data that its Daily Papers list carries, and its visible text.

One look at each character and no tree: on pages made for it (20,000 elements within each other, tags that never end) parsers that build one,
and the standard library's, take minutes for 200 kB. What a browser would swallow, after a quotation mark that is never closed, is swallowed here too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape

_BLOCKS = "address article aside blockquote br div dd dt footer h1 h2 h3 h4 h5 h6 header li main nav ol p pre section table td tr ul"
_APART = frozenset(_BLOCKS.split())
_RAW = {
    name: re.compile(f"</{name}(?=[\\s/>])", re.IGNORECASE) for name in ("script", "style", "title")
}  # hold text up to their end, no tags
_UNSEEN = frozenset({"noscript", "template", "svg"})
_NAME = re.compile(r"[A-Za-z][^\s/>]{0,40}")
_STOP = re.compile(r"[>\"']")
_ATTRIBUTE = re.compile(r"""\s(data-target|data-props)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


@dataclass
class Page:
    """A page. data: the attribute data-props of its Daily Papers list, None where there is no such list."""

    title: str = ""
    data: str | None = None
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The visible text, with a blank line where a block begins or ends."""
        return unescape("".join(self.parts))


def read(html: str) -> Page:
    """Read a page; any text is one."""
    page = Page()
    unseen: list[str] = []
    at = 0
    while at < len(html):
        start = html.find("<", at)
        if not unseen:
            page.parts.append(html[at:] if start < 0 else html[at:start])
        if start < 0:
            break
        closing = html.startswith("/", start + 1)
        match = _NAME.match(html, start + 1 + closing)
        if match is None:
            end = _end_of_remark(html, start)
            if end is None:  # a < that begins nothing
                at = start + 1
                if not unseen:
                    page.parts.append("<")
                continue
            at = end
            continue
        end = _end_of_tag(html, match.end())
        name = match[0].lower()
        if name in _APART and not unseen:
            page.parts.append("\n\n")
        if closing:
            if name in unseen[-64:]:
                while unseen.pop() != name:
                    pass
        elif name in _RAW:
            stop = _RAW[name].search(html, end)
            if name == "title" and not page.title:
                page.title = unescape(html[end : stop.start() if stop else end])
            end = stop.start() if stop else len(html)
        elif name in _UNSEEN and html[end - 2 : end] != "/>":
            unseen.append(name)
        elif page.data is None and html.find("data-props", match.end(), end) > 0:
            own = {found[1]: found[2] or found[3] or found[4] or "" for found in _ATTRIBUTE.finditer(html, match.end(), end)}
            if own.get("data-target") == "DailyPapers":
                page.data = unescape(own.get("data-props", ""))
        at = end
    return page


def _end_of_remark(html: str, start: int) -> int | None:
    """Where a comment, a declaration or an instruction ends; None where there is none."""
    if html.startswith("<!--", start):
        end = html.find("-->", start + 4)
        return len(html) if end < 0 else end + 3
    if html.startswith(("<!", "<?", "</"), start):
        end = html.find(">", start)
        return len(html) if end < 0 else end + 1
    return None


def _end_of_tag(html: str, at: int) -> int:
    """Where a tag ends: behind the first > that stands in no quotation marks, else at the end of the page."""
    while (stop := _STOP.search(html, at)) is not None:
        if stop[0] == ">":
            return stop.end()
        at = html.find(stop[0], stop.end()) + 1
        if not at:
            break
    return len(html)
