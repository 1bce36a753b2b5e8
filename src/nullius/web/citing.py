"""How to cite a paper: BibTeX, RIS, CSL-JSON."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

SUFFIX = {"bibtex": "bib", "ris": "ris", "csl": "csl.json"}
TYPES = {
    "bibtex": "application/x-bibtex; charset=utf-8",
    "ris": "application/x-research-info-systems; charset=utf-8",
    "csl": "application/vnd.citationstyles.csl+json",
}
# Characters that mean something to TeX
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "$": r"\$",
    "~": r"\~{}",
    "^": r"\^{}",
}


def wanted(accept: str) -> str | None:
    """Return the citation format that an Accept header asks for before HTML, if it asks for one."""
    for part in accept.split(","):
        kind = part.split(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml", "*/*"):
            return None
        for form, named in TYPES.items():
            if kind == named.split(";")[0]:
                return form
    return None


def one(paper: Mapping[str, Any], form: str) -> tuple[str, str]:
    """Return a paper's citation and its media type. paper: a row of the feed with `key` and `authors` (names)."""
    return many([paper], form)


def many(papers: Sequence[Mapping[str, Any]], form: str) -> tuple[str, str]:
    """Return the citations of several papers as one file."""
    if form == "csl":
        return json.dumps([csl(paper) for paper in papers], ensure_ascii=False, indent=1), TYPES[form]
    make = bibtex if form == "bibtex" else ris
    return "\n".join(make(paper) for paper in papers), TYPES[form]


def bibtex(paper: Mapping[str, Any]) -> str:
    """A @misc entry with eprint for arXiv, @article where a journal is known."""
    fields = {"title": "{" + _tex(paper["title"]) + "}", "author": " and ".join(_tex(name) for name in paper["authors"])}
    if paper["published"]:
        fields |= {"year": paper["published"][:4], "month": str(int(paper["published"][5:7]))}
    if paper["arxiv_id"]:
        fields |= {"eprint": paper["arxiv_id"], "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{paper['arxiv_id']}"}
        fields["primaryClass"] = paper["primary_category"] or ""
    fields |= {"doi": paper["doi"] or "", "journal": _tex(paper["journal_ref"] or "")}
    kind = "article" if paper["journal_ref"] else "misc"
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return f"@{kind}{{{_label(paper)},\n" + ",\n".join(lines) + "\n}\n"


def _label(paper: Mapping[str, Any]) -> str:
    """factual-recall-2023, or yu-2023-characterizing: letters, digits and hyphens only."""
    first = paper["authors"][0].split()[-1] if paper["authors"] else ""
    word = next(iter(re.findall(r"\w{4,}", paper["title"])), "paper")
    parts = [paper["slug"] or f"{first}-{word}", (paper["published"] or "")[:4]]
    plain = unicodedata.normalize("NFKD", "-".join(part for part in parts if part)).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9-]+", "", plain).strip("-").lower() or f"p{paper['id']}"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def ris(paper: Mapping[str, Any]) -> str:
    """One tag a line; a line break in a value would begin another tag."""
    lines = ["TY  - JOUR" if paper["journal_ref"] else "TY  - UNPB", f"TI  - {_line(paper['title'])}"]
    lines += [f"AU  - {_line(_turned(name))}" for name in paper["authors"]]
    if paper["published"]:
        lines += [f"PY  - {paper['published'][:4]}", f"DA  - {paper['published'].replace('-', '/')}"]
    if paper["abstract"]:
        lines.append(f"AB  - {_line(paper['abstract'])}")
    if paper["doi"]:
        lines.append(f"DO  - {_line(paper['doi'])}")
    if paper["journal_ref"]:
        lines.append(f"JO  - {_line(paper['journal_ref'])}")
    if paper["arxiv_id"]:
        lines += [f"UR  - https://arxiv.org/abs/{paper['arxiv_id']}", f"AN  - arXiv:{paper['arxiv_id']}"]
    return "\r\n".join([*lines, "ER  - ", ""])


def _line(text: str) -> str:
    return " ".join(text.split())


def _turned(name: str) -> str:
    """Ada Lovelace → Lovelace, Ada; names with a comma are turned already."""
    first, _, last = name.strip().rpartition(" ")
    return f"{last}, {first}" if first and "," not in name else name.strip()


def csl(paper: Mapping[str, Any]) -> dict[str, Any]:
    """One item of CSL-JSON."""
    item: dict[str, Any] = {"id": paper["key"], "type": "article", "title": paper["title"]}
    if paper["authors"]:
        item["author"] = [_csl_name(name) for name in paper["authors"]]
    if paper["published"]:
        item["issued"] = {"date-parts": [[int(part) for part in paper["published"].split("-")]]}
    if paper["abstract"]:
        item["abstract"] = paper["abstract"]
    if paper["doi"]:
        item["DOI"] = paper["doi"]
    if paper["arxiv_id"]:
        item |= {"number": f"arXiv:{paper['arxiv_id']}", "publisher": "arXiv", "URL": f"https://arxiv.org/abs/{paper['arxiv_id']}"}
    return item


def _csl_name(name: str) -> dict[str, str]:
    family, _, given = _turned(name).partition(", ")
    return {"family": family, "given": given} if given else {"literal": family}
