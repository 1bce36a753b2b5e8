"""A page as a reader of HTML sees it."""

from __future__ import annotations

from html.parser import HTMLParser


class Outline(HTMLParser):
    """What a page loads and links, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "script" and "src" not in found and "json" not in str(found.get("type")):
            self.inline += 1
        self.inline += sum(name == "style" or name.startswith("on") for name in found)
        if tag == "a":
            self.links.append(found.get("href") or "")
        elif ("src" in found or tag == "link") and found.get("rel") != "canonical":
            self.loads.append(found.get("src") or found.get("href") or "")


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    return parser
