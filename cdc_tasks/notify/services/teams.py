"""Microsoft Teams: an Adaptive Card to the webhook of a Workflow, whose URL is the account's secret.

https://learn.microsoft.com/en-us/microsoftteams/platform/webhooks-and-connectors/how-to/add-incoming-webhook
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pymsteams
import requests
import urllib3

from cdc_tasks.notify.send_errors import (
    AnswerLostError,
    NotSentError,
    RefusedError,
    UnavailableError,
    error_for_status,
)
from cdc_tasks.notify.services import TIMEOUT, Rate, Recipient
from cdc_tasks.notify.webhooks import WebhookURL, checked_url, is_private_address, post
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from cdc_tasks.notify.message import Message

__all__ = ["RATE", "card", "check", "send"]

RATE = Rate(channel=2, service=10)  # Teams: four requests a second

_LIMIT = 28_000  # bytes of the whole message
# Most characters of each text: together below the limit, even if each takes 12 bytes, as an emoji does in JSON.
_HEADING, _TITLE, _FALLBACK, _NAME, _VALUE, _FACTS, _URL = 100, 300, 150, 40, 100, 10, 1000
_MARKDOWN = re.compile(r"([\\`*_\[\]<>])")


class _Card(pymsteams.connectorcard):  # type: ignore[misc]  # it has no types
    """pymsteams' card, posted to the checked URL and nowhere else."""

    def __init__(self, webhook: WebhookURL) -> None:
        super().__init__(webhook.url, http_timeout=TIMEOUT)
        self._webhook = webhook

    def send(self) -> bool:
        """Post the card; raises TeamsWebhookException unless the status is 2xx, as the base class does."""
        answer = post(self._webhook, self.payload, timeout=self.http_timeout)
        self.last_http_response = answer
        if not answer.ok or answer.is_redirect:
            raise pymsteams.TeamsWebhookException(answer.status_code)
        return True


def send(recipient: Recipient, message: Message) -> None:
    """Post the card to the account's webhook, after checking its URL."""
    outgoing = _Card(_webhook(recipient))
    outgoing.payload = _wrapped(card(message)) if worker_settings().teams_card == "wrapped" else card(message)
    if len(json.dumps(outgoing.payload)) > _LIMIT:
        raise RefusedError("Teams takes no card of more than 28 kB.")
    try:
        outgoing.send()
    except pymsteams.TeamsWebhookException:
        raise _refusal(outgoing.last_http_response) from None
    except requests.RequestException as error:
        raise _send_error(error) from None  # its text contains the whole URL


def check(recipient: Recipient) -> None:
    """Raise RefusedError if the URL's host is not in TEAMS_HOSTS: workers reach hosts that users must not reach."""
    _webhook(recipient)


def _webhook(recipient: Recipient) -> WebhookURL:
    settings = worker_settings()
    return checked_url(
        recipient.secret.get_secret_value(),
        settings.teams_hosts,
        allow_loopback=settings.teams_allow_loopback,
    )


def _refusal(answer: requests.Response) -> NotSentError | AnswerLostError:
    if answer.is_redirect:
        return RefusedError(
            "Teams: the webhook's URL redirects.", hint="connect the account again, with a current URL"
        )
    return error_for_status(answer.status_code, answer.headers.get("Retry-After"), "Teams")


def card(message: Message) -> dict[str, Any]:
    """Return the message as an Adaptive Card, well within the size limit of Teams."""
    title = {"type": "TextRun", "text": _cut(message.title, _TITLE), "weight": "Bolder"}
    heading = {
        "type": "TextBlock",
        "text": _plain(_cut(message.heading, _HEADING)),
        "size": "Large",
        "wrap": True,
    }
    body: list[dict[str, Any]] = [heading, {"type": "RichTextBlock", "inlines": [title]}]
    if message.facts:
        facts = [
            {"title": _plain(_cut(fact.name, _NAME)), "value": _plain(_cut(fact.value, _VALUE)) or "-"}
            for fact in message.facts[:_FACTS]
        ]
        body.append({"type": "FactSet", "facts": facts})
    found: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "fallbackText": _cut(message.text, _FALLBACK),
        "msteams": {"width": "Full"},
        "body": body,
    }
    if message.link and len(message.link) <= _URL:
        found["actions"] = [{"type": "Action.OpenUrl", "title": "Open", "url": message.link}]
    return found


def _wrapped(content: dict[str, Any]) -> dict[str, Any]:
    attachment = {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": content,
    }
    return {"type": "message", "attachments": [attachment]}


def _plain(text: str) -> str:
    """Escape the Markdown of a TextBlock or a FactSet: a title must not become a link."""
    return _MARKDOWN.sub(r"\\\1", text)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _send_error(error: requests.RequestException) -> NotSentError | AnswerLostError:
    """Return the error for a failed call, by whether the card may have arrived; keep only the error's name."""
    if is_private_address(error):
        return RefusedError("The webhook's host has a private address; workers send only to public ones.")
    never_sent = (requests.ConnectTimeout, requests.exceptions.SSLError, requests.exceptions.ProxyError)
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(error, never_sent) or isinstance(reason, urllib3.exceptions.NewConnectionError):
        return UnavailableError(f"Teams was not reached: {type(reason or error).__name__}.")
    if isinstance(error, requests.exceptions.InvalidURL):
        return RefusedError("This is not a URL.")
    return AnswerLostError(f"Teams' answer was lost: {type(error).__name__}.")
