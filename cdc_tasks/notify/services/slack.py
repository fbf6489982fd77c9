"""Slack: a bot token per account, and a channel or a person to post to.

Limits: https://docs.slack.dev/reference/block-kit/blocks, errors: https://docs.slack.dev/reference/methods/chat.postMessage.
"""

from __future__ import annotations

import ssl
from functools import cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError

from cdc_tasks.notify.send_errors import (
    AnswerLostError,
    NotSentError,
    RefusedError,
    UnavailableError,
    error_for_status,
)
from cdc_tasks.notify.services import TIMEOUT, Rate, Recipient
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from slack_sdk.web import SlackResponse

    from cdc_tasks.notify.message import Fact, Message

__all__ = ["RATE", "blocks", "check", "send"]

# https://docs.slack.dev/apis/web-api/rate-limits: one message a second to a channel, some hundreds a minute to all.
RATE = Rate(channel=1, service=5)

# Most characters of each text, and most fields of a section.
_TEXT, _HEADER, _SECTION, _FIELD, _URL, _FIELDS = 4000, 150, 3000, 2000, 3000, 10

_TEMPORARY = {"service_unavailable", "request_timeout", "team_added_to_org"}
_MAYBE_POSTED = {"fatal_error", "internal_error"}  # "it's possible some aspect of the operation succeeded"
_HINTS = {
    "channel_not_found": "connect the account again, with the id of a channel that the app can see",
    "is_archived": "connect the account again, with a channel that is not archived",
    "not_in_channel": "in the channel: /invite the app",
    "users_not_found": "connect the account again, with --address and a channel or user id",
    "missing_scope": "give the app the scopes chat:write and users:read.email, and install it again",
}
_NEW_TOKEN = "connect the account again, with a token that is valid"  # noqa: S105  # advice, not a token


def send(recipient: Recipient, message: Message) -> None:
    """Post to the account's channel or person; without an address, find the person by e-mail."""
    client = WebClient(
        token=recipient.secret.get_secret_value(),
        base_url=worker_settings().slack_api_url,
        timeout=TIMEOUT,
        ssl=_certificates(),
        retry_handlers=[],  # the client's own handlers would send again after a lost answer
    )
    client.proxy = None  # so that urllib reads HTTPS_PROXY and NO_PROXY itself; slack_sdk ignores NO_PROXY
    channel = recipient.address or _user_id(client, recipient.email)
    text = _cut(_escaped(message.text), _TEXT)
    _call(
        lambda: client.chat_postMessage(
            channel=channel, text=text, blocks=blocks(message), unfurl_links=False
        )
    )


@cache
def _certificates() -> ssl.SSLContext:
    """Return the certificates of all authorities, which the client would read from disk for each message."""
    return ssl.create_default_context()


def check(recipient: Recipient) -> None:
    """Raise RefusedError if the secret is not a token, e.g. a webhook URL or a signing secret."""
    if not recipient.secret.get_secret_value().startswith("xox"):
        raise RefusedError(
            "Slack's tokens start with xoxb- (a bot's) or xoxp- (a person's); this one does not."
        )


def blocks(message: Message) -> list[dict[str, Any]]:
    """Return the message as blocks of Block Kit, within Slack's limits."""
    title = _cut(_escaped(message.title), _SECTION - 20)
    found: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(message.heading, _HEADER)}},
        {"type": "section", "text": {"type": "mrkdwn", "text": f"*{title}*"}},
    ]
    if message.facts:
        fields = [_field(fact) for fact in message.facts[:_FIELDS]]
        found.append({"type": "section", "fields": fields})
    if message.link and len(message.link) <= _URL:
        button = {"type": "button", "text": {"type": "plain_text", "text": "Open"}, "url": message.link}
        found.append({"type": "actions", "elements": [button]})
    return found


def _field(fact: Fact) -> dict[str, str]:
    name, value = _cut(_escaped(fact.name), _FIELD // 4), _cut(_escaped(fact.value), _FIELD // 2)
    return {"type": "mrkdwn", "text": f"*{name}*\n{value or '-'}"}


def _escaped(text: str) -> str:
    """Escape Slack's markup: `<!channel>` in a ticket's title must not notify a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = text[: limit - 1]
    ampersand = kept.rfind("&", -5)  # do not cut inside an &amp;
    return (kept[:ampersand] if ampersand >= 0 and ";" not in kept[ampersand:] else kept) + "…"


def _user_id(client: WebClient, email: str) -> str:
    try:
        return str(_call(lambda: client.users_lookupByEmail(email=email))["user"]["id"])
    except AnswerLostError as error:  # a lookup without an answer has posted nothing
        raise UnavailableError(error.message, after=error.after) from None


def _call(method: Callable[[], SlackResponse]) -> SlackResponse:
    """Call the method, and translate the library's errors."""
    try:
        return method()
    except SlackApiError as error:
        raise _send_error(error) from None
    except URLError as error:
        raise UnavailableError(f"Slack was not reached: {error.reason}.") from None
    except (OSError, HTTPException, UnicodeDecodeError, SlackClientError) as error:
        raise AnswerLostError(f"Slack's answer was lost: {type(error).__name__}.") from None


def _send_error(error: SlackApiError) -> NotSentError | AnswerLostError:
    response = error.response
    status = getattr(response, "status_code", 200)
    if status != 200:  # the Web API reports its own errors with status 200
        return error_for_status(status, response.headers.get("Retry-After"), "Slack")
    code = str(response.get("error") or "no error code")
    if code in {"ratelimited", "rate_limited"}:
        return error_for_status(429, response.headers.get("Retry-After"), "Slack")
    if code in _TEMPORARY:
        return UnavailableError(f"Slack: {code}.")
    if code in _MAYBE_POSTED:
        return AnswerLostError(f"Slack: {code}.")
    needs_token = any(word in code for word in ("auth", "token", "account_inactive"))
    return RefusedError(f"Slack: {code}.", hint=_HINTS.get(code, _NEW_TOKEN if needs_token else None))
