"""The page to order something."""

import json

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from orders.models import Order
from orders.tasks import reserve


@csrf_exempt
@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    """Save an order, and reserve the thing in the same transaction."""
    wanted = json.loads(request.body)
    order = Order.objects.create(customer=wanted["customer"], item=wanted["item"])
    reserve.delay_on_commit(order.pk)  # written into the transaction: no commit, no task; no broker, it waits
    if wanted["item"] == "unicorn":
        transaction.set_rollback(True)
        return JsonResponse({"error": "There are no unicorns."}, status=409)
    return JsonResponse({"id": order.pk}, status=201)
