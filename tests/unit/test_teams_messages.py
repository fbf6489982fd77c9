from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cdc_tasks.notify.message import Fact, Message
from cdc_tasks.notify.send_errors import RefusedError
from cdc_tasks.notify.services import Recipient, teams
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_texts = st.text(max_size=50) | st.sampled_from(["🔥" * 310, "[" * 310])
_messages = st.builds(
    Message,
    heading=_texts,
    title=_texts,
    facts=st.lists(st.builds(Fact, _texts, _texts), max_size=12).map(tuple),
    link=st.none() | st.just("https://helpdesk.example.com/1"),
)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/unused")
    worker_settings.cache_clear()
    yield monkeypatch
    worker_settings.cache_clear()


@given(_messages)
def test_every_card_stays_below_28_kilobytes(message: Message) -> None:
    size = len(json.dumps(teams._wrapped(teams.card(message))))
    assert size < 28_000


def test_a_title_cannot_become_a_link() -> None:
    card = teams.card(
        Message(heading="[x](https://evil.example)", title="[y](z)", facts=(Fact("a", "[b](c)"),))
    )
    heading, title, facts = card["body"]
    assert heading["text"] == r"\[x\](https://evil.example)"
    assert title == {
        "type": "RichTextBlock",  # which has no Markdown
        "inlines": [{"type": "TextRun", "text": "[y](z)", "weight": "Bolder"}],
    }
    assert facts["facts"] == [{"title": "a", "value": r"\[b\](c)"}]


@pytest.mark.parametrize(
    "url",
    [
        "https://prod-12.westeurope.logic.azure.com:443/workflows/1/triggers/manual/paths/invoke?sig=x",
        "https://default1.00.environment.api.powerplatform.com:443/powerautomate/automations/direct/x",
        "https://PROD-12.westeurope.logic.azure.com/workflows/1",
    ],
)
def test_the_webhooks_of_workflows_are_accepted(url: str) -> None:
    teams.check(_recipient(url))


@pytest.mark.parametrize(
    "url",
    [
        "http://prod-12.westeurope.logic.azure.com/workflows/1",
        "https://169.254.169.254/latest/meta-data",
        "https://logic.azure.com.evil.example/workflows/1",
        "https://evil.example/?x.logic.azure.com",
        "https://x.logic.azure.com@evil.example/",
        "http://127.0.0.1:8000/workflows/1",
        "https://localhost/workflows/1",
        "https://[broken/",
        r"https://localhost:8000\@x.webhook.office.com/workflows/",
        r"https://x.webhook.office.com\.evil.example/workflows/",
        "https://x.webhook.office.com:pass@evil.example/workflows/",
        "https://anna@x.webhook.office.com/workflows/",
        "https://x.webhook.office.com:8443/workflows/",
        "https://evil.example\t.webhook.office.com/workflows/",
        "https://evil.example%2f.webhook.office.com/workflows/",
        "https://evil。webhook.office.com/workflows/",
        "//x.webhook.office.com/workflows/",
        "xoxb-token",
        "",
    ],
)
def test_any_other_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RefusedError) as caught:
        teams.check(_recipient(url))
    assert "workflows" not in str(caught.value)


def test_this_machine_is_accepted_only_with_its_setting(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("TEAMS_ALLOW_LOOPBACK", "true")
    worker_settings.cache_clear()
    teams.check(_recipient("http://127.0.0.1:8000/workflows/1"))
    with pytest.raises(RefusedError):
        teams.check(_recipient("http://10.0.0.1:8000/workflows/1"))


def test_more_hosts_can_be_named(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("TEAMS_HOSTS", "hooks.example.com, *.hooks.example.net")
    worker_settings.cache_clear()
    teams.check(_recipient("https://hooks.example.com/1"))
    teams.check(_recipient("https://a.hooks.example.net/1"))
    with pytest.raises(RefusedError, match="TEAMS_HOSTS"):
        teams.check(_recipient("https://prod.logic.azure.com/1"))


def test_another_port_can_be_named(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("TEAMS_HOSTS", "hooks.example.com:8443")
    worker_settings.cache_clear()
    teams.check(_recipient("https://hooks.example.com:8443/1"))
    with pytest.raises(RefusedError):
        teams.check(_recipient("https://hooks.example.com/1"))


def _recipient(url: str) -> Recipient:
    return Recipient(address=None, secret=SecretStr(url), email="anna@example.com")
