"""Headless Chromium, driven over W3C WebDriver: shows what a person would see of a page."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from harness.machine_servers import find_program
from harness.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,1400",
)


KEYS: Final = {"TAB": "\ue004", "ENTER": "\ue007", "SPACE": "\ue00d", "ESCAPE": "\ue00c"}  # of WebDriver


class _ChromeDriver(ServerProcess):
    name = "chromedriver"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        driver = find_program("chromedriver", "CDC_TEST_CHROMEDRIVER")
        return [str(driver), f"--port={self.port}", "--log-level=SEVERE"]

    def _is_ready(self) -> bool:
        try:
            return bool(_request("GET", f"{self.url}/status")["ready"])
        except OSError:
            return False


class Browser:
    """One window, with a fresh profile."""

    def __enter__(self) -> Self:
        self._driver = _ChromeDriver()
        self._driver.start()
        options = {
            "binary": str(find_program("chromium", "CDC_TEST_CHROMIUM")),
            "args": [*_FLAGS, f"--user-data-dir={self._driver.home / 'profile'}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            answer = _request(
                "POST", f"{self._driver.url}/session", {"capabilities": {"alwaysMatch": wanted}}
            )
        except BaseException:
            self._driver.close()
            raise
        self._session = f"{self._driver.url}/session/{answer['sessionId']}"
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _request("DELETE", self._session)
        finally:
            self._driver.close()

    def open(self, url: str) -> None:
        _request("POST", f"{self._session}/url", {"url": url})

    def resize(self, width: int, height: int) -> None:
        """Resize the window, in CSS pixels."""
        _request("POST", f"{self._session}/window/rect", {"width": width, "height": height})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a JavaScript function, and return its result."""
        return _request("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def prefer(self, scheme: Literal["light", "dark"]) -> None:
        """Set the user's preference for light or dark colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        _request("POST", f"{self._session}/goog/cdp/execute", command)

    def press(self, *keys: str) -> None:
        """Press keys one after the other: names such as `TAB` and `ENTER`, or characters."""
        events = [
            {"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")
        ]
        actions = {"actions": [{"type": "key", "id": "keyboard", "actions": events}]}
        _request("POST", f"{self._session}/actions", actions)

    @property
    def text(self) -> str:
        """The visible text of the page."""
        return str(self.run("return document.body.innerText"))

    @property
    def source(self) -> str:
        """The whole document, with invisible parts."""
        return str(self.run("return document.documentElement.outerHTML"))

    @property
    def hosts(self) -> set[str]:
        """The hosts from which the page loaded resources."""
        return set(
            self.run("return performance.getEntriesByType('resource').map((each) => new URL(each.name).host)")
        )

    def problems(self) -> list[str]:
        """Return the errors and warnings on the page's console since the last call."""
        entries = _request("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in {"SEVERE", "WARNING"}]

    def picture(self, left: float, top: float, width: float, height: float) -> bytes:
        """Return a part of the page as PNG; the area is in CSS pixels, and may be outside of the window."""
        clip = {"x": left, "y": top, "width": width, "height": height, "scale": 1}
        command = {
            "cmd": "Page.captureScreenshot",
            "params": {"format": "png", "clip": clip, "captureBeyondViewport": True},
        }
        answer = _request("POST", f"{self._session}/goog/cdp/execute", command)
        return base64.b64decode(answer["data"])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(_request("GET", f"{self._session}/screenshot")))


def _request(method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data=data, method=method, headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.read().decode()}") from None
