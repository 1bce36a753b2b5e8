"""The feed's tables, in the same database as the lab's (`nullius.lab.schema`), written with the same transactions.

Moments are text, ISO 8601 in UTC with milliseconds, as in the lab: as text they sort by time. Days are dates. Secrets are kept as SHA-256 only.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nullius.lab.schema import run

metadata = sa.MetaData(
    naming_convention={
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
    | {"fk": "fk_%(table_name)s_%(column_0_N_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}
)

LOCAL = ""  # the account of the one user of a local nullius, as the lab's queue has it
ROLES = ("member", "maintainer")
SUBSCRIPTION_STATES = ("pending", "active", "paused", "suspended", "left")
DELIVERY_STATES = ("planned", "sending", "sent", "unknown", "failed", "skipped")


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def _ulid() -> sa.Column[str]:
    return sa.Column("id", sa.String(26), primary_key=True)


def _moment(name: str, *, nullable: bool = False, index: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(29), nullable=nullable, index=index)


def _to(table: str, *, key: bool = False, nullable: bool = False, index: bool = False, ondelete: str = "CASCADE") -> sa.Column[Any]:
    """A column named after the table that it refers to."""
    return sa.Column(table, sa.ForeignKey(f"{table}.id", ondelete=ondelete), primary_key=key, nullable=nullable, index=index)


def _one_of(name: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{name} IN {values}", name=name)


# --- papers -------------------------------------------------------------------------------------------------------------------------------

paper = sa.Table(
    "paper",
    metadata,
    _id(),
    sa.Column("slug", sa.String, unique=True),  # papers of the catalogue
    sa.Column("arxiv_id", sa.String(20), unique=True),  # without version
    sa.Column("doi", sa.String, unique=True),  # lower case
    sa.Column("title", sa.Text, nullable=False),  # as given: escaped and made readable when shown
    sa.Column("title_key", sa.String, nullable=False),  # NFKD, casefold, alphanumerics only
    sa.Column("abstract", sa.Text),
    sa.Column("summary", sa.Text),  # ours, one sentence
    sa.Column("their_summary", sa.Text),  # somebody else's, always shown with
    sa.Column("their_summary_source", sa.String),  # its source
    sa.Column("published", sa.Date),
    sa.Column("date_inferred", sa.Boolean, nullable=False, default=False),  # the year was not printed
    sa.Column("n_authors", sa.Integer),
    sa.Column("primary_category", sa.String),
    sa.Column("version", sa.Integer),  # the newest on arXiv that we know of
    sa.Column("question", sa.String),  # the catalogue's grouping
    sa.Column("code", sa.String),  # address of a repository
    sa.Column("comment", sa.Text),
    sa.Column("journal_ref", sa.Text),
    sa.Column("withdrawn", sa.Boolean, nullable=False, default=False),
    sa.Column("merged_into", sa.ForeignKey("paper.id")),
    sa.Column("heat", sa.Float),  # hours: 48 log2 Σ w 2^(t/48), t in hours since 1970 (nullius.feed.heat)
    sa.Column("votes", sa.Integer, nullable=False, default=0),  # counted from `vote` in the transaction that changes it
    sa.Column("notes", sa.Integer, nullable=False, default=0),  # counted from `note`, likewise
    _moment("added"),
    _moment("changed", index=True),  # what the word index was built from, and Atom's `updated`
    sa.Index(
        "uq_paper_title_key",
        "title_key",
        unique=True,
        sqlite_where=sa.text("arxiv_id IS NULL AND merged_into IS NULL"),
        postgresql_where=sa.text("arxiv_id IS NULL AND merged_into IS NULL"),
    ),
    sa.Index("ix_paper_title_key", "title_key"),
    sa.Index("ix_paper_heat", "heat"),
    sa.Index("ix_paper_published", "published"),
    sa.Index("ix_paper_merged_into", "merged_into"),
)
# That a paper was not merged into another. Not `merged_into IS NULL`: that is true of nearly all, and SQLite would go by the index of that column
standing = sa.func.coalesce(paper.c.merged_into, 0) == 0
paper_name = sa.Table(  # names that a paper had before: they redirect
    "paper_name",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    _to("paper", index=True),
)
paper_author = sa.Table(
    "paper_author",
    metadata,
    _to("paper", key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("name_key", sa.String, nullable=False, index=True),
)
paper_category = sa.Table(
    "paper_category",
    metadata,
    _to("paper", key=True),
    sa.Column("category", sa.String, primary_key=True, index=True),
)
paper_day = sa.Table(  # on which day's page it stood
    "paper_day",
    metadata,
    _to("paper", key=True),
    sa.Column("day", sa.Date, primary_key=True, index=True),
    sa.Column("source", sa.String, primary_key=True),
)
paper_source = sa.Table(  # what was read, from where: external_id carries the version where the source has versions, so that history stays
    "paper_source",
    metadata,
    _id(),
    _to("paper", index=True),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("external_id", sa.String, nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("payload_sha256", sa.String(64), nullable=False),
    _moment("fetched_at"),
    sa.UniqueConstraint("source", "external_id"),
)
signal = sa.Table(  # counts that others publish: hf_upvotes, hf_comments, github_stars, unknown_count
    "signal",
    metadata,
    _to("paper", key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
study = sa.Table(  # what the code of a study says of itself, read once per version of its module (nullius.feed.claims)
    "study",
    metadata,
    sa.Column("slug", sa.String, primary_key=True),
    sa.Column("module_sha256", sa.String(64), nullable=False),
    sa.Column("question", sa.String, nullable=False),
    sa.Column("minutes", sa.Float, nullable=False),  # of a quick run on two cores with the default subject
    sa.Column("subject", sa.String, nullable=False),  # the default one
    sa.Column("trains_its_own", sa.Boolean, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),  # [{name, values, help}]
)
claim = sa.Table(  # every wording that a claim ever had: old verdicts stay with their old words
    "claim",
    metadata,
    sa.Column("slug", sa.String, primary_key=True),
    sa.Column("claim_id", sa.String, primary_key=True),
    sa.Column("digest", sa.String(16), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("description", sa.JSON, nullable=False),  # nullius.lab.studies.describe
    _moment("retired_at", nullable=True),
)
embedding = sa.Table(
    "embedding",
    metadata,
    _to("paper", key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("text_sha256", sa.String(64), nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # int8, one byte per dimension
    sa.Column("scale", sa.Float, nullable=False),  # vector · scale has unit length
)
heat_event = sa.Table(  # votes, runs, verdicts, upvotes; the publication is paper.published itself
    "heat_event",
    metadata,
    _to("paper", key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),  # what must not count twice
    _moment("at", index=True),
    sa.Column("weight", sa.Float, nullable=False),
)
import_run = sa.Table(
    "import_run",
    metadata,
    _ulid(),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("address", sa.String, nullable=False),  # URL or file name, as asked for
    sa.Column("window", sa.String, nullable=False, default=""),
    sa.Column("cursor", sa.String, nullable=False, default=""),  # where to go on; empty when complete
    sa.Column("state", sa.String, nullable=False),  # running, done, failed
    sa.Column("error", sa.String, nullable=False, default=""),
    _moment("started"),
    _moment("finished", nullable=True),
    *(sa.Column(name, sa.Integer, nullable=False, default=0) for name in ("seen", "new", "changed", "rejected")),
)
import_reject = sa.Table(
    "import_reject",
    metadata,
    _id(),
    _to("import_run", index=True),
    sa.Column("position", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("head", sa.String(200), nullable=False),
)

# --- people -------------------------------------------------------------------------------------------------------------------------------

account = sa.Table(
    "account",
    metadata,
    _ulid(),  # LOCAL: the one user of a local nullius
    sa.Column("email", sa.String),
    sa.Column("name", sa.String, nullable=False, default=""),
    sa.Column("role", sa.String, nullable=False),
    _one_of("role", ROLES),
    sa.Column("tz", sa.String, nullable=False, default="UTC"),
    sa.Column("subject", sa.String, nullable=False, default="smollm2-135m"),  # "my subject"
    _moment("created"),
    _moment("disabled_at", nullable=True),
)
sa.Index("uq_account_email", sa.func.lower(account.c.email), unique=True)
identity = sa.Table(  # connected sign-ins
    "identity",
    metadata,
    sa.Column("provider", sa.String, primary_key=True),
    sa.Column("external_id", sa.String, primary_key=True),
    _to("account", index=True),
    sa.Column("name", sa.String, nullable=False, default=""),
    _moment("created"),
)
session = sa.Table(
    "session",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    _to("account", index=True),
    sa.Column("agent", sa.String, nullable=False, default=""),
    _moment("created"),
    _moment("seen"),
    _moment("expires", index=True),
)
api_token = sa.Table(
    "api_token",
    metadata,
    _ulid(),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    _to("account", index=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),  # of read, vote, run
    _moment("created"),
    _moment("expires", nullable=True),
    _moment("used_at", nullable=True),
)
ticket = sa.Table(  # links that work once: sign-in, confirmation
    "ticket",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("purpose", sa.String, nullable=False),
    sa.Column("email", sa.String, nullable=False, default=""),
    sa.Column("payload", sa.JSON, nullable=False, default=dict),
    _moment("created"),
    _moment("expires", index=True),
    _moment("used_at", nullable=True),
    sa.Index("ix_ticket_email", "email", "created"),
)
vote = sa.Table("vote", metadata, _to("account", key=True), _to("paper", key=True, index=True), _moment("created"))
saved = sa.Table(
    "saved",
    metadata,
    _to("account", key=True),
    _to("paper", key=True, index=True),
    _moment("created"),
    sa.Column("note", sa.Text, nullable=False, default=""),
    _moment("read_at", nullable=True),
    sa.Column("collection", sa.String, nullable=False, default=""),
)
note = sa.Table(  # discussion, threaded one level: on a paper, or on one verdict of it
    "note",
    metadata,
    _id(),
    _to("paper", index=True),
    sa.Column("run_id", sa.ForeignKey(run.c.id, ondelete="CASCADE"), index=True),
    sa.Column("claim", sa.String),
    _to("account", nullable=True, index=True, ondelete="SET NULL"),
    sa.Column("parent", sa.ForeignKey("note.id", ondelete="CASCADE"), index=True),
    sa.Column("text", sa.Text, nullable=False),  # markdown, as written
    _moment("created"),
    _moment("edited", nullable=True),
    _moment("removed_at", nullable=True),  # its text is gone, its place in the thread stays
)

# --- mail ---------------------------------------------------------------------------------------------------------------------------------

address = sa.Table(
    "address",
    metadata,
    _id(),
    sa.Column("email", sa.String, nullable=False),
    _moment("created"),
    _moment("confirmed_at", nullable=True),
    _moment("suppressed_at", nullable=True),
    sa.Column("suppressed_reason", sa.String, nullable=False, default=""),
)
sa.Index("uq_address_email", sa.func.lower(address.c.email), unique=True)
subscription = sa.Table(
    "subscription",
    metadata,
    _ulid(),
    _to("address"),
    _to("account", nullable=True, index=True, ondelete="SET NULL"),
    sa.Column("kind", sa.String, nullable=False),  # daily, trending, search, author, paper, subject
    sa.Column("target", sa.String, nullable=False, default=""),
    sa.Column("schedule", sa.String, nullable=False),  # daily, weekdays, weekly
    sa.Column("hour", sa.Integer, nullable=False, default=7),
    sa.Column("weekday", sa.Integer, nullable=False, default=0),  # of a weekly one; Monday is 0
    sa.Column("at_most", sa.Integer, nullable=False, default=10),
    sa.Column("tz", sa.String, nullable=False, default="UTC"),
    sa.Column("state", sa.String, nullable=False),
    _one_of("state", SUBSCRIPTION_STATES),
    _moment("created"),
    _moment("paused_until", nullable=True),
    sa.UniqueConstraint("address", "kind", "target"),
)
delivery = sa.Table(
    "delivery",
    metadata,
    _id(),
    _to("subscription"),
    sa.Column("period_key", sa.String(10), nullable=False),  # local date, or ISO week
    sa.Column("state", sa.String, nullable=False),
    _one_of("state", DELIVERY_STATES),
    sa.Column("message_id", sa.String, nullable=False, unique=True),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    _moment("due"),
    _moment("next_try", nullable=True),
    _moment("claimed_at", nullable=True),
    _moment("sent_at", nullable=True),
    sa.Column("error", sa.String, nullable=False, default=""),
    sa.UniqueConstraint("subscription", "period_key"),
    sa.Index("ix_delivery_state", "state", "next_try"),
)
delivered_paper = sa.Table(
    "delivered_paper",
    metadata,
    _to("subscription", key=True),
    _to("paper", key=True, index=True),
    _to("delivery", index=True),
)
bounce = sa.Table(
    "bounce",
    metadata,
    _id(),
    _to("address", index=True),
    _to("delivery", nullable=True, index=True, ondelete="SET NULL"),
    sa.Column("class", sa.String, nullable=False, key="class_"),  # hard, soft, complaint
    sa.Column("status", sa.String, nullable=False, default=""),  # RFC 3463, as 5.1.1
    sa.Column("diagnostic", sa.String, nullable=False, default=""),
    sa.Column("report_sha256", sa.String(64), nullable=False, unique=True),  # the same report read twice counts once
    _moment("at"),
)
