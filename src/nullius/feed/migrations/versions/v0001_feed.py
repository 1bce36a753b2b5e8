"""The feed's first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "delivered_paper",
    "bounce",
    "delivery",
    "vote",
    "subscription",
    "signal",
    "session",
    "saved",
    "paper_source",
    "paper_name",
    "paper_day",
    "paper_category",
    "paper_author",
    "note",
    "import_reject",
    "identity",
    "heat_event",
    "embedding",
    "api_token",
    "ticket",
    "study",
    "paper",
    "import_run",
    "claim",
    "address",
    "account",
)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "account",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("email", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("tz", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("disabled_at", sa.String(length=29), nullable=True),
        sa.CheckConstraint("role IN ('member', 'maintainer')", name="ck_account_role"),
        sa.PrimaryKeyConstraint("id", name="pk_account"),
    )
    op.create_table(
        "address",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("confirmed_at", sa.String(length=29), nullable=True),
        sa.Column("suppressed_at", sa.String(length=29), nullable=True),
        sa.Column("suppressed_reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_address"),
    )
    op.create_index("uq_account_email", "account", [sa.text("lower(email)")], unique=True)
    op.create_index("uq_address_email", "address", [sa.text("lower(email)")], unique=True)
    op.create_table(
        "claim",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("claim_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(length=16), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("description", sa.JSON(), nullable=False),
        sa.Column("retired_at", sa.String(length=29), nullable=True),
        sa.PrimaryKeyConstraint("slug", "claim_id", "digest", name="pk_claim"),
    )
    op.create_table(
        "import_run",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("cursor", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("started", sa.String(length=29), nullable=False),
        sa.Column("finished", sa.String(length=29), nullable=True),
        sa.Column("seen", sa.Integer(), nullable=False),
        sa.Column("new", sa.Integer(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.Column("rejected", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_import_run"),
    )
    op.create_table(
        "paper",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(), nullable=True),
        sa.Column("arxiv_id", sa.String(length=20), nullable=True),
        sa.Column("doi", sa.String(), nullable=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("title_key", sa.String(), nullable=False),
        sa.Column("abstract", sa.Text(), nullable=True),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column("their_summary", sa.Text(), nullable=True),
        sa.Column("their_summary_source", sa.String(), nullable=True),
        sa.Column("published", sa.Date(), nullable=True),
        sa.Column("date_inferred", sa.Boolean(), nullable=False),
        sa.Column("n_authors", sa.Integer(), nullable=True),
        sa.Column("primary_category", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("question", sa.String(), nullable=True),
        sa.Column("code", sa.String(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("journal_ref", sa.Text(), nullable=True),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("merged_into", sa.Integer(), nullable=True),
        sa.Column("heat", sa.Float(), nullable=True),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("notes", sa.Integer(), nullable=False),
        sa.Column("added", sa.String(length=29), nullable=False),
        sa.Column("changed", sa.String(length=29), nullable=False),
        sa.ForeignKeyConstraint(["merged_into"], ["paper.id"], name="fk_paper_merged_into"),
        sa.PrimaryKeyConstraint("id", name="pk_paper"),
        sa.UniqueConstraint("arxiv_id", name="uq_paper_arxiv_id"),
        sa.UniqueConstraint("doi", name="uq_paper_doi"),
        sa.UniqueConstraint("slug", name="uq_paper_slug"),
    )
    op.create_index("ix_paper_changed", "paper", ["changed"], unique=False)
    op.create_index("ix_paper_heat", "paper", ["heat"], unique=False)
    op.create_index("ix_paper_merged_into", "paper", ["merged_into"], unique=False)
    op.create_index("ix_paper_published", "paper", ["published"], unique=False)
    op.create_index("ix_paper_title_key", "paper", ["title_key"], unique=False)
    op.create_index(
        "uq_paper_title_key",
        "paper",
        ["title_key"],
        unique=True,
        sqlite_where=sa.text("arxiv_id IS NULL AND merged_into IS NULL"),
        postgresql_where=sa.text("arxiv_id IS NULL AND merged_into IS NULL"),
    )
    op.create_table(
        "study",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("module_sha256", sa.String(length=64), nullable=False),
        sa.Column("question", sa.String(), nullable=False),
        sa.Column("minutes", sa.Float(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("trains_its_own", sa.Boolean(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("slug", name="pk_study"),
    )
    op.create_table(
        "ticket",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("expires", sa.String(length=29), nullable=False),
        sa.Column("used_at", sa.String(length=29), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name="pk_ticket"),
    )
    op.create_index("ix_ticket_email", "ticket", ["email", "created"], unique=False)
    op.create_index("ix_ticket_expires", "ticket", ["expires"], unique=False)
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=26), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("expires", sa.String(length=29), nullable=True),
        sa.Column("used_at", sa.String(length=29), nullable=True),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_api_token_account", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_api_token"),
        sa.UniqueConstraint("sha256", name="uq_api_token_sha256"),
    )
    op.create_index("ix_api_token_account", "api_token", ["account"], unique=False)
    op.create_table(
        "embedding",
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("text_sha256", sa.String(length=64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("scale", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_embedding_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("paper", "model", name="pk_embedding"),
    )
    op.create_table(
        "heat_event",
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("at", sa.String(length=29), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_heat_event_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("paper", "kind", "key", name="pk_heat_event"),
    )
    op.create_index("ix_heat_event_at", "heat_event", ["at"], unique=False)
    op.create_table(
        "identity",
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("external_id", sa.String(), nullable=False),
        sa.Column("account", sa.String(length=26), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_identity_account", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("provider", "external_id", name="pk_identity"),
    )
    op.create_index("ix_identity_account", "identity", ["account"], unique=False)
    op.create_table(
        "import_reject",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("import_run", sa.String(length=26), nullable=False),
        sa.Column("position", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("head", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["import_run"], ["import_run.id"], name="fk_import_reject_import_run", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_import_reject"),
    )
    op.create_index("ix_import_reject_import_run", "import_reject", ["import_run"], unique=False)
    op.create_table(
        "note",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=26), nullable=True),
        sa.Column("claim", sa.String(), nullable=True),
        sa.Column("account", sa.String(length=26), nullable=True),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("edited", sa.String(length=29), nullable=True),
        sa.Column("removed_at", sa.String(length=29), nullable=True),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_note_account", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_note_paper", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["parent"], ["note.id"], name="fk_note_parent", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_note_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_note"),
    )
    op.create_index("ix_note_account", "note", ["account"], unique=False)
    op.create_index("ix_note_paper", "note", ["paper"], unique=False)
    op.create_index("ix_note_parent", "note", ["parent"], unique=False)
    op.create_index("ix_note_run_id", "note", ["run_id"], unique=False)
    op.create_table(
        "paper_author",
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_paper_author_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("paper", "position", name="pk_paper_author"),
    )
    op.create_index("ix_paper_author_name_key", "paper_author", ["name_key"], unique=False)
    op.create_table(
        "paper_category",
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_paper_category_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("paper", "category", name="pk_paper_category"),
    )
    op.create_index("ix_paper_category_category", "paper_category", ["category"], unique=False)
    op.create_table(
        "paper_day",
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_paper_day_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("paper", "day", "source", name="pk_paper_day"),
    )
    op.create_index("ix_paper_day_day", "paper_day", ["day"], unique=False)
    op.create_table(
        "paper_name",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_paper_name_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", name="pk_paper_name"),
    )
    op.create_index("ix_paper_name_paper", "paper_name", ["paper"], unique=False)
    op.create_table(
        "paper_source",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("external_id", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("payload_sha256", sa.String(length=64), nullable=False),
        sa.Column("fetched_at", sa.String(length=29), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_paper_source_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_paper_source"),
        sa.UniqueConstraint("source", "external_id", name="uq_paper_source_source_external_id"),
    )
    op.create_index("ix_paper_source_paper", "paper_source", ["paper"], unique=False)
    op.create_table(
        "saved",
        sa.Column("account", sa.String(length=26), nullable=False),
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("read_at", sa.String(length=29), nullable=True),
        sa.Column("collection", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_saved_account", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_saved_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account", "paper", name="pk_saved"),
    )
    op.create_index("ix_saved_paper", "saved", ["paper"], unique=False)
    op.create_table(
        "session",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=26), nullable=False),
        sa.Column("agent", sa.String(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("seen", sa.String(length=29), nullable=False),
        sa.Column("expires", sa.String(length=29), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_session_account", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256", name="pk_session"),
    )
    op.create_index("ix_session_account", "session", ["account"], unique=False)
    op.create_index("ix_session_expires", "session", ["expires"], unique=False)
    op.create_table(
        "signal",
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_signal_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("paper", "kind", "day", name="pk_signal"),
    )
    op.create_table(
        "subscription",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("address", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(length=26), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("schedule", sa.String(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("weekday", sa.Integer(), nullable=False),
        sa.Column("at_most", sa.Integer(), nullable=False),
        sa.Column("tz", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.Column("paused_until", sa.String(length=29), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'active', 'paused', 'suspended', 'left')", name="ck_subscription_state"),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_subscription_account", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["address"], ["address.id"], name="fk_subscription_address", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_subscription"),
        sa.UniqueConstraint("address", "kind", "target", name="uq_subscription_address_kind_target"),
    )
    op.create_index("ix_subscription_account", "subscription", ["account"], unique=False)
    op.create_table(
        "vote",
        sa.Column("account", sa.String(length=26), nullable=False),
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(length=29), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_vote_account", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_vote_paper", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account", "paper", name="pk_vote"),
    )
    op.create_index("ix_vote_paper", "vote", ["paper"], unique=False)
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("subscription", sa.String(length=26), nullable=False),
        sa.Column("period_key", sa.String(length=10), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due", sa.String(length=29), nullable=False),
        sa.Column("next_try", sa.String(length=29), nullable=True),
        sa.Column("claimed_at", sa.String(length=29), nullable=True),
        sa.Column("sent_at", sa.String(length=29), nullable=True),
        sa.Column("error", sa.String(), nullable=False),
        sa.CheckConstraint("state IN ('planned', 'sending', 'sent', 'unknown', 'failed', 'skipped')", name="ck_delivery_state"),
        sa.ForeignKeyConstraint(["subscription"], ["subscription.id"], name="fk_delivery_subscription", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
        sa.UniqueConstraint("message_id", name="uq_delivery_message_id"),
        sa.UniqueConstraint("subscription", "period_key", name="uq_delivery_subscription_period_key"),
    )
    op.create_index("ix_delivery_state", "delivery", ["state", "next_try"], unique=False)
    op.create_table(
        "bounce",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("address", sa.Integer(), nullable=False),
        sa.Column("delivery", sa.Integer(), nullable=True),
        sa.Column("class", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("diagnostic", sa.String(), nullable=False),
        sa.Column("report_sha256", sa.String(length=64), nullable=False),
        sa.Column("at", sa.String(length=29), nullable=False),
        sa.ForeignKeyConstraint(["address"], ["address.id"], name="fk_bounce_address", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["delivery"], ["delivery.id"], name="fk_bounce_delivery", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_bounce"),
        sa.UniqueConstraint("report_sha256", name="uq_bounce_report_sha256"),
    )
    op.create_index("ix_bounce_address", "bounce", ["address"], unique=False)
    op.create_index("ix_bounce_delivery", "bounce", ["delivery"], unique=False)
    op.create_table(
        "delivered_paper",
        sa.Column("subscription", sa.String(length=26), nullable=False),
        sa.Column("paper", sa.Integer(), nullable=False),
        sa.Column("delivery", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["delivery"], ["delivery.id"], name="fk_delivered_paper_delivery", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["paper"], ["paper.id"], name="fk_delivered_paper_paper", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["subscription"], ["subscription.id"], name="fk_delivered_paper_subscription", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("subscription", "paper", name="pk_delivered_paper"),
    )
    op.create_index("ix_delivered_paper_delivery", "delivered_paper", ["delivery"], unique=False)
    op.create_index("ix_delivered_paper_paper", "delivered_paper", ["paper"], unique=False)


def downgrade() -> None:
    """Remove the tables, those that refer to others first."""
    for name in TABLES:
        op.drop_table(name)
