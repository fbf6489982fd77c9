"""For the shell: `python -m price_list tables`, `python -m price_list product 7`, `python -m price_list sale`."""

import json
import sys
from pathlib import Path

from sqlalchemy import text

from cdc_tasks import db
from price_list import prices


def create_tables() -> None:
    """Create the table with 200 products, if it is not there."""
    with db.session() as session:
        session.execute(text(Path(__file__).with_name("tables.sql").read_text()))
        session.commit()


match sys.argv[1:]:
    case ["tables"]:
        create_tables()
    case ["product", number]:
        print(json.dumps(prices.product(int(number))))
    case ["sale"]:
        for each in prices.sale():
            print(json.dumps(each))
    case _:
        sys.exit("python -m price_list tables | product NUMBER | sale")
