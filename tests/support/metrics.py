"""The pages of a listener, as Prometheus and a probe read them."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Pages"]


class Pages:
    """The pages of a listener with CDC_METRICS_ADDRESS."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.address = f"{host}:{port}"

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text; (0, "") while there is no server."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def ready(self) -> tuple[int, str]:
        return self.get("/readyz")

    @property
    def families(self) -> dict[str, Metric]:
        """All families by name; the names of counters end with `_total`."""
        found = list(text_string_to_metric_families(self.get("/metrics")[1]))
        return {f"{each.name}_total" if each.type == "counter" else each.name: each for each in found}

    def number(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples of this name with these labels; None if there is none."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None
