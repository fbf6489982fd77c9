"""The story of `examples/django-shop`."""

from __future__ import annotations

import re
import secrets
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from examples.stage import Stage

__all__ = ["OTHER_DATABASE", "TRY", "VARIABLES", "play"]

_PASSWORD: Final = secrets.token_urlsafe(9)
VARIABLES: Final = {
    "DJANGO_SUPERUSER_USERNAME": f"ann{secrets.token_hex(3)}",
    "DJANGO_SUPERUSER_EMAIL": "ann@example.com",
    "DJANGO_SUPERUSER_PASSWORD": _PASSWORD,
}
OTHER_DATABASE: Final = None
TRY: Final = (
    "psql $DATABASE_URL -c \"UPDATE orders_order SET status = 'new'\"",
    f"{{web}}/admin/ in a browser, as {VARIABLES['DJANGO_SUPERUSER_USERNAME']}, password {_PASSWORD}",
)
_TOKEN: Final = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')


def play(stage: Stage) -> None:
    """Change orders in three ways: a view, SQL, the admin."""
    stage.step("A view saves an order, and enqueues a task in its transaction")
    order = stage.http("POST", "web", "/orders/", {"customer": "bob@example.com", "item": "lamp"})["id"]
    stage.see("worker", f"Order {order}: a lamp is reserved")
    stage.step("The next order is rolled back after it has enqueued its task: there is no task")
    stage.http("POST", "web", "/orders/", {"customer": "bob@example.com", "item": "unicorn"})
    stage.step("Someone sets the order to paid in SQL: Django does not notice, but the mail is sent")
    stage.sql(f"UPDATE orders_order SET status = 'paid' WHERE id = {order}")
    stage.see("worker", "Your lamp is paid.")
    stage.see("worker", f"Order {order}: new -> paid, by someone with SQL")
    stage.step("Ann sets it to shipped in the admin: the change says who did it")
    stage.run("python manage.py createsuperuser --noinput")
    _Admin(stage).change(order, {"customer": "bob@example.com", "item": "lamp", "status": "shipped"})
    stage.see("worker", f"Order {order}: paid -> shipped, by user")
    stage.exactly(1, "worker", r"reserve\[.*received")


class _Admin:
    """Someone at Django's admin, in a browser."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._url = f"{stage.programs['web'].url}/admin"
        self._browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self._fill(
            "/login/",
            {"username": VARIABLES["DJANGO_SUPERUSER_USERNAME"], "password": _PASSWORD, "next": "/admin/"},
        )

    def change(self, order: int, values: Mapping[str, str]) -> None:
        self._stage.say(f"in the admin> order {order}: status = {values['status']}")
        self._fill(f"/orders/order/{order}/change/", values)

    def _fill(self, path: str, values: Mapping[str, str]) -> None:
        """Fill a form in, and send it."""
        page = self._get(path)
        token = _TOKEN.search(page)
        assert token is not None, page  # noqa: S101 - every form of Django's has one
        body = urllib.parse.urlencode({**values, "csrfmiddlewaretoken": token[1]}).encode()
        self._get(path, body)

    def _get(self, path: str, body: bytes | None = None) -> str:
        request = urllib.request.Request(f"{self._url}{path}", data=body)  # noqa: S310 - a program of ours
        with self._browser.open(request, timeout=60) as answer:
            text: str = answer.read().decode()
            return text
