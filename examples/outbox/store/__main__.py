"""For the shell: `python -m store tables`, `python -m store place ITEM`, `python -m store pay NUMBER`."""

import sys

from store import orders, tables

try:
    match sys.argv[1:]:
        case ["tables"]:
            tables.create()
        case ["place", item]:
            print(f"order {orders.place(item)} is committed")
        case ["pay", number]:
            orders.pay(int(number))
        case _:
            sys.exit("python -m store tables | place ITEM | pay NUMBER")
except orders.NotAllowedError as error:
    print(f"rolled back: {error}")
