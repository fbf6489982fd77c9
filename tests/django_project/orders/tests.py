"""As a team would test its routes: run by `manage.py test`."""

from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal

from django.db import transaction
from django.test import TestCase, TransactionTestCase

from cdc_tasks.django.testing import CaptureError, captured_commits, captured_saves
from orders.models import Line, Order, Tag
from orders.tasks import send_receipt


def everything():
    order = Order.objects.create(
        customer="Ännä@example.com", total=Decimal("1.50"), details={"a": [1, None, "ü"]}
    )
    order.status = "paid"
    order.created_at = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
    order.save()
    line = Line.objects.create(order=order, name='it\'s \\ "quoted"')
    line.delete()
    Tag.objects.create(name="new").delete()
    return order


def seen(captured):
    names = ("table", "event", "before", "after", "unavailable")
    return [{name: getattr(change, name) for name in names} for change in captured.changes]


class RolledBack(TestCase):
    def test_a_paid_order_is_confirmed(self):
        order = Order.objects.create(customer="ann@example.com")
        with captured_saves() as fired:
            order.status = "paid"
            order.save()
        fired.assert_fires("orders.tasks.send_confirmation", args=[order.pk])
        fired.assert_fires("search.tasks.index")

    def test_nothing_happens_to_other_tables(self):
        with captured_saves() as fired:
            from django.contrib.auth.models import Group

            Group.objects.create(name="staff")
        fired.assert_fires_nothing()

    def test_what_does_not_fire_is_told(self):
        with captured_saves() as fired:
            Order.objects.create(customer="ann@example.com", status="new")
        with self.assertRaisesRegex(
            AssertionError,
            r"insert on public.orders_order\) fires orders.tasks.send_confirmation 0 times, not 1",
        ):
            fired.assert_fires("orders.tasks.send_confirmation")

    def test_update_sends_no_signal(self):
        order = Order.objects.create(customer="ann@example.com")
        with captured_saves() as fired:
            Order.objects.filter(pk=order.pk).update(status="paid")
        fired.assert_fires_nothing()

    def test_what_is_not_committed_is_in_no_log(self):
        with self.assertRaisesRegex(CaptureError, "runs in a transaction"), captured_commits():
            pass


class Committed(TransactionTestCase):
    def test_update_is_seen_and_a_rollback_is_not(self):
        first, second = (Order.objects.create(customer=f"{name}@example.com") for name in ("ann", "bob"))
        with captured_commits() as fired:
            Order.objects.filter(pk=first.pk).update(status="paid")
            with transaction.atomic():
                Order.objects.filter(pk=second.pk).update(status="paid")
                transaction.set_rollback(True)
        fired.assert_fires("orders.tasks.send_confirmation", args=[first.pk])
        fired.assert_fires("search.tasks.index")

    def test_nothing_is_left_behind(self):
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_publication")
            self.assertEqual(cursor.fetchone()[0], 0)

    def test_tasks_commit_with_the_transaction(self):
        with captured_commits() as fired:
            with transaction.atomic():
                order = Order.objects.create(customer="ann@example.com")
                told = send_receipt.delay(order.pk)
                with suppress(ZeroDivisionError), transaction.atomic():
                    send_receipt.delay(0)
                    raise ZeroDivisionError
                send_receipt.apply_async_on_commit([order.pk], countdown=5)
                send_receipt.delay_on_commit(order.pk)
            with suppress(ZeroDivisionError), transaction.atomic():
                send_receipt.delay(0)
                raise ZeroDivisionError
        fired.assert_fires("orders.tasks.send_receipt", args=[order.pk], times=3)
        fired.assert_fires("orders.tasks.send_receipt", times=3)
        self.assertIn(told.id, [change.id for change in fired.changes])

    def test_both_ways_see_the_same(self):
        with captured_commits() as real, captured_saves() as followed:
            everything()
        self.assertEqual(seen(followed), seen(real))
        self.assertEqual(len(real.changes), 6)
