"""The inbox answers like Slack's Web API and like a Teams webhook."""

from __future__ import annotations

import json
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pymsteams
import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from demo.inbox import Inbox, Message

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with Inbox() as opened:
        yield opened


def slack(inbox: Inbox, token: str = "xoxb-demo") -> WebClient:
    return WebClient(token=token, base_url=inbox.slack_api_url, retry_handlers=[])


def send_to_teams(url: str, payload: dict[str, Any]) -> int:
    card = pymsteams.connectorcard(url, http_timeout=5)
    card.payload = payload
    with suppress(pymsteams.TeamsWebhookException):
        card.send()
    status = card.last_http_response.status_code
    card.last_http_response.close()
    return int(status)


CARD = {"type": "AdaptiveCard", "version": "1.4", "fallbackText": "New Ticket", "body": []}


def test_a_message_posted_with_slacks_own_client_arrives(inbox: Inbox) -> None:
    blocks = [{"type": "header", "text": {"type": "plain_text", "text": "New Ticket"}}]

    answer = slack(inbox).chat_postMessage(channel="#support", text="New &amp; hot", blocks=blocks)

    assert (answer["ok"], answer["channel"]) == (True, "#support")
    [message] = inbox.messages()
    assert (message.service, message.to, message.text) == ("slack", "#support", "New & hot")
    assert message.content["blocks"] == blocks


def test_a_user_found_by_e_mail_is_shown_with_the_address(inbox: Inbox) -> None:
    client = slack(inbox)

    first, again, other = (
        client.users_lookupByEmail(email=email)["user"]["id"]
        for email in ("anna@example.com", "anna@example.com", "anna@example.org")
    )
    client.chat_postMessage(channel=first, text="hello")

    assert first == again != other
    assert inbox.messages()[0].to == "anna@example.com"


@pytest.mark.parametrize(
    ("token", "method", "arguments", "error"),
    [
        ("wrong", "chat.postMessage", {"channel": "C1", "text": "x"}, "invalid_auth"),
        ("xoxb-1", "chat.postMessage", {"text": "x"}, "channel_not_found"),
        ("xoxb-1", "chat.postMessage", {"channel": "C1"}, "no_text"),
        ("xoxb-1", "users.lookupByEmail", {"email": "nobody"}, "users_not_found"),
        ("xoxb-1", "no.such", {}, "unknown_method"),
    ],
)
def test_slacks_errors_have_slacks_format(
    inbox: Inbox, token: str, method: str, arguments: dict[str, str], error: str
) -> None:
    with pytest.raises(SlackApiError) as raised:
        slack(inbox, token).api_call(method, json=arguments)

    assert raised.value.response.status_code == 200
    assert raised.value.response["error"] == error
    assert inbox.messages() == []


@pytest.mark.parametrize(
    "payload", [CARD, {"type": "message", "attachments": [{"content": CARD}]}], ids=["bare", "wrapped"]
)
def test_a_teams_webhook_takes_a_card_with_202(inbox: Inbox, payload: dict[str, Any]) -> None:
    assert send_to_teams(inbox.teams_webhook("Mona Lind"), payload) == 202

    [message] = inbox.messages()
    assert (message.service, message.to, message.text) == ("teams", "Mona Lind", "New Ticket")


@pytest.mark.parametrize(
    ("payload", "status"),
    [({"text": "the retired kind of card"}, 400), ({**CARD, "fallbackText": "x" * 29_000}, 413)],
    ids=["no Adaptive Card", "too large"],
)
def test_a_teams_webhook_refuses_what_teams_would_refuse(
    inbox: Inbox, payload: dict[str, Any], status: int
) -> None:
    assert send_to_teams(inbox.teams_webhook("Mona"), payload) == status
    assert inbox.messages() == []


def test_the_callback_gets_each_message_with_its_time() -> None:
    seen: list[Message] = []
    with Inbox(seen.append) as inbox:
        slack(inbox).chat_postMessage(channel="C1", text="one")
        slack(inbox).chat_postMessage(channel="C1", text="two")

    assert [(message.number, message.text) for message in seen] == [(1, "one"), (2, "two")]
    assert seen[0].at < seen[1].at


def test_the_page_asks_only_for_what_is_new(inbox: Inbox) -> None:
    for text in ("one", "two", "three"):
        slack(inbox).chat_postMessage(channel="C1", text=text)

    with urllib.request.urlopen(f"{inbox.url}/messages?after=2") as answer:
        messages = json.load(answer)

    assert [message["content"]["text"] for message in messages] == ["three"]
