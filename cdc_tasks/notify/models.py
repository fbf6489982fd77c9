"""The tables that notifications need: users, accounts and preferences. Real tables may have more columns."""

from __future__ import annotations

from datetime import time

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["Base", "ConnectedAccount", "NotificationPreferences", "User"]


class Base(DeclarativeBase):
    """The base of the models. The tables come from `cdc_tasks/helpdesk/schema/*.sql`, never from these classes."""

    type_annotation_map = {int: BigInteger}  # noqa: RUF012  # SQLAlchemy reads it like this


class User(Base):
    """A person. A manager may have a manager too."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    manager_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))


class ConnectedAccount(Base):
    """Where a user receives messages."""

    __tablename__ = "connected_accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    service: Mapped[str]  # the name of a module of `cdc_tasks.notify.services`
    address: Mapped[str | None]  # Slack: channel or user id; None: found by the user's e-mail
    secret: Mapped[str]  # Slack's bot token or Teams' webhook URL, encrypted by `sealed_secrets`
    is_active: Mapped[bool]

    user: Mapped[User] = relationship(lazy="joined")
    preferences: Mapped[NotificationPreferences | None] = relationship(
        lazy="joined",
        primaryjoin="foreign(ConnectedAccount.user_id) == NotificationPreferences.user_id",
        viewonly=True,
    )


class NotificationPreferences(Base):
    """Which messages a user wants, and when. A user without a row gets all of them at any time."""

    __tablename__ = "notification_preferences"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    muted_kinds: Mapped[str] = mapped_column(default="")  # comma-separated
    manager_copies: Mapped[bool] = mapped_column(default=True)
    quiet_from: Mapped[time | None]
    quiet_until: Mapped[time | None]
    time_zone: Mapped[str] = mapped_column(default="UTC")
