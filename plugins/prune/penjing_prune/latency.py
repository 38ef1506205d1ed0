"""Placeholder."""

from __future__ import annotations

from typing import Any


class Latency:
    """Latency."""

    achieved = 1.0

    def __init__(self, *args: Any) -> None: ...
    def choose(self, *args: Any) -> list[int]:
        """Choose."""
        return []

    def details(self) -> dict[str, Any]:
        """Details."""
        return {}
