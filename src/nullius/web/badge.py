"""Badges for model cards: one claim on one subject, as a small SVG that says what came out and when."""

from __future__ import annotations

from html import escape

from starlette.responses import Response

from nullius.web import verdicts, words
from nullius.web.problems import Problem
from nullius.web.site import Visit, get

COLOUR = {"holds": "#17653a", "fails": "#a12d1a", "inconclusive": "#745500", "out of reach": "#565b61", "not run": "#565b61"}
WIDTH = 6.6  # of a character of 11 px, on the wide side


@get("/badge/{claim}/{subject:path}.svg")
def badge(visit: Visit) -> Response:
    """The newest verdict on a claim (paper.claim, or a claim's id where only one paper has it) and a subject."""
    name, subject = visit.params["claim"], visit.params["subject"]
    slug, _, claim = name.rpartition(".")
    found = [v for v in verdicts.index().verdicts if v["claim"] == claim and (not slug or v["slug"] == slug)]
    papers = {v["slug"] for v in found}
    if len(papers) > 1:
        raise Problem(422, f"Several papers have a claim '{claim[:60]}'.", f"Write {sorted(papers)[0]}.{claim}.")
    own = sorted((v for v in found if v["subject"]["name"] == subject), key=lambda v: v["finished"])
    if not found or (not own and subject not in {v["subject"]["name"] for v in verdicts.index().verdicts}):
        raise Problem(404, f"There is no verdict of '{name[:60]}' on '{subject[:60]}' here.")
    word = own[-1]["word"] if own else "not run"
    told = f"{words.glyph(word)} {word}"
    if own and own[-1]["effect"]:
        told += f" {words.interval(own[-1]['effect'])}"
    if own:
        told += f" · {own[-1]['finished'][:10]}"
    headers = {"Cache-Control": "public, max-age=3600", "Cross-Origin-Resource-Policy": "cross-origin"}
    return Response(svg(f"{claim} on {subject}", told, COLOUR[word]), media_type="image/svg+xml", headers=headers)


def svg(left: str, right: str, colour: str) -> str:
    """Two boxes with a text each; the title says both."""
    a, b = round(len(left) * WIDTH + 14), round(len(right) * WIDTH + 14)
    text = 'font-family="system-ui,Verdana,DejaVu Sans,sans-serif" font-size="11" fill="#fff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" aria-label="{escape(left)}: {escape(right)}">'
        f"<title>{escape(left)}: {escape(right)}</title>"
        f'<rect width="{a + b}" height="20" rx="4" fill="#33373c"/><path d="M{a} 0h{b - 4}a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4H{a}z" fill="{colour}"/>'
        f'<g {text}><text x="{a / 2}" y="14">{escape(left)}</text><text x="{a + b / 2}" y="14">{escape(right)}</text></g></svg>'
    )
