from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cdc_tasks.notify.message import Fact, Message
from cdc_tasks.notify.send_errors import RefusedError
from cdc_tasks.notify.services import Recipient, slack

_texts = st.text(st.characters(codec="utf-8"), max_size=50) | st.sampled_from(["&" * 3500, "<" * 3500])
_messages = st.builds(
    Message,
    heading=_texts.filter(bool),
    title=_texts,
    facts=st.lists(st.builds(Fact, _texts, _texts), max_size=12).map(tuple),
    link=st.none() | st.just("https://helpdesk.example.com/" + "x" * 3000),
)


@given(_messages)
def test_every_message_stays_within_slacks_limits(message: Message) -> None:
    blocks = slack.blocks(message)
    assert len(blocks) <= 50
    for block in blocks:
        match block["type"]:
            case "header":
                assert 1 <= len(block["text"]["text"]) <= 150
            case "section":
                assert len(block.get("fields", [])) <= 10
                assert len(block.get("text", {}).get("text", "")) <= 3000
                assert all(len(field["text"]) <= 2000 for field in block.get("fields", []))
            case "actions":
                assert len(block["elements"][0]["url"]) <= 3000


def test_a_title_cannot_notify_a_whole_channel_or_become_a_link() -> None:
    message = Message(heading="New Ticket", title="<!channel> & <https://evil.example|help>")
    text = json.dumps(slack.blocks(message))
    assert "<!" not in text
    assert "<https" not in text
    assert "&lt;!channel&gt; &amp; &lt;https://evil.example|help&gt;" in text


def test_a_cut_never_leaves_half_an_escape() -> None:
    for length in range(2980, 3000):
        title = slack.blocks(Message(heading="h", title="x" * length + "&&&&"))[1]["text"]["text"]
        assert "&" not in title.replace("&amp;", "")


def test_a_webhook_is_no_token() -> None:
    recipient = Recipient(address=None, secret=SecretStr("https://hooks.slack.com/x"), email="a@example.com")
    with pytest.raises(RefusedError, match="xoxb-"):
        slack.check(recipient)
