"""For the shell: `python -m audit tables`, and the shop: `python -m audit raise-credit CUSTOMER AMOUNT USER`."""

import os
import sys
from pathlib import Path

import psycopg

import cdc_tasks

_SHOP = os.environ.get("DATABASE_URL", "postgresql://localhost/shop")
_AUDIT = os.environ.get("AUDIT_DATABASE_URL", "postgresql://localhost/audit")


def create_tables() -> None:
    """Create the tables that are missing, in both databases."""
    for url, name in ((_SHOP, "shop.sql"), (_AUDIT, "audit.sql")):
        with psycopg.connect(url) as connection:
            connection.execute(Path(__file__).with_name(name).read_bytes())


def raise_credit(customer: int, amount: str, *, user: int) -> None:
    """Give a customer more credit, and say who did: one line in the transaction."""
    with psycopg.connect(_SHOP) as connection:
        cdc_tasks.context(connection, user_id=user, source="back office")
        connection.execute("UPDATE customers SET credit = credit + %s WHERE id = %s", [amount, customer])


match sys.argv[1:]:
    case ["tables"]:
        create_tables()
    case ["raise-credit", customer, amount, user]:
        raise_credit(int(customer), amount, user=int(user))
    case _:
        sys.exit("python -m audit tables | raise-credit CUSTOMER AMOUNT USER")
