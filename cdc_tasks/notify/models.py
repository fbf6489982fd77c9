"""People, their accounts and their preferences: the tables that messages need. The real ones may have more columns."""

from __future__ import annotations

from datetime import time

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["Base", "ConnectedAccount", "NotificationPreferences", "User"]


class Base(DeclarativeBase):
    """Tables are made by `cdc_tasks/helpdesk/schema/*.sql`, or are there already: never from here."""

    type_annotation_map = {int: BigInteger}  # noqa: RUF012  # SQLAlchemy's own way to say it


class User(Base):
    """A person, who may have a manager, who may have one too."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    manager_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))


class ConnectedAccount(Base):
    """Where a person wants messages."""

    __tablename__ = "connected_accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    service: Mapped[str]  # the name of a module of `cdc_tasks.notify.services`
    address: Mapped[str | None]  # Slack: channel or user id; empty: found by the user's e-mail
    secret: Mapped[str]  # sealed by `cdc_tasks.notify.vault`: Slack's bot token, Teams' webhook URL
    is_active: Mapped[bool]

    user: Mapped[User] = relationship(lazy="joined")


class NotificationPreferences(Base):
    """What a person wants to hear of, and when; who has none hears of everything at any time."""

    __tablename__ = "notification_preferences"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    muted_kinds: Mapped[str] = mapped_column(default="")  # comma-separated
    manager_copies: Mapped[bool] = mapped_column(default=True)
    quiet_from: Mapped[time | None]
    quiet_until: Mapped[time | None]
    time_zone: Mapped[str] = mapped_column(default="UTC")
