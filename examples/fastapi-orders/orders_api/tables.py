"""The database: one asynchronous engine, for the API and for the workers."""

import asyncio
import os

from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import cdc_tasks

_URL = os.environ.get("DATABASE_URL", "postgresql://localhost/orders")

engine = create_async_engine(_URL.replace("postgresql:", "postgresql+asyncpg:", 1))
Session = async_sessionmaker(engine, expire_on_commit=False)
cdc_tasks.write_context(engine)  # each transaction of a request says who made it


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """An order of some pieces of one thing."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


async def create() -> None:
    """Create what is missing."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        # Without it PostgreSQL does not log what a row was before an UPDATE.
        await connection.execute(text("ALTER TABLE orders REPLICA IDENTITY FULL"))


if __name__ == "__main__":
    asyncio.run(create())
