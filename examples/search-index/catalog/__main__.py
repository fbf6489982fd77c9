"""For the shell: `python -m catalog tables`, `python -m catalog search WORDS`."""

import os
import sys
from pathlib import Path

import psycopg

from catalog import index


def create_tables() -> None:
    """Create the table with 2,000 products, if it is not there."""
    with psycopg.connect(os.environ.get("DATABASE_URL", "postgresql://localhost/catalog")) as connection:
        connection.execute(Path(__file__).with_name("tables.sql").read_bytes())


match sys.argv[1:]:
    case ["tables"]:
        create_tables()
    case ["search", *words]:
        for product, name in index.search(" ".join(words)):
            print(f"{product}: {name}")
        print(f"({index.size()} products are in the index)")
    case _:
        sys.exit("python -m catalog tables | search WORDS")
