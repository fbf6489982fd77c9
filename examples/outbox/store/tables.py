"""The database: PostgreSQL, MySQL or MariaDB."""

import os

from sqlalchemy import String, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

_URL = os.environ.get("DATABASE_URL", "postgresql://localhost/store")

engine = create_engine(_URL.replace("mysql:", "mysql+pymysql:", 1))
Session = sessionmaker(engine)

# The logs of MySQL and MariaDB have no messages: what a transaction enqueues is a row, deleted at once.
_MARKS = """
CREATE TABLE IF NOT EXISTS cdc_tasks_marks (id CHAR(36) CHARACTER SET ascii PRIMARY KEY,
                                            says MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL)
    ENGINE = InnoDB /*!80000 ENGINE = BLACKHOLE */
"""


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """An order of one thing."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(100))
    is_paid: Mapped[bool] = mapped_column(default=False)


def create() -> None:
    """Create what is missing."""
    Base.metadata.create_all(engine)
    if engine.dialect.name != "postgresql":
        with engine.begin() as connection:
            connection.execute(text(_MARKS))
