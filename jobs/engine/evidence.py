"""What the steps of one copy round measured."""

from __future__ import annotations

from typing import Any

from jobs.engine.routes import names_of
from jobs.engine.steps import Task


class Evidence(dict[str, dict[str, Any]]):
    """What the last good attempt at each step measured, by the step's name."""

    def of(self, task: Task) -> dict[str, Any]:
        """What the step of this task measured; empty when none ended well."""
        return next((self[name] for name in names_of(task) if name in self), {})

    def one(self, task: Task) -> dict[str, Any]:
        """The same, where it cannot be done without; raise KeyError when none ended well."""
        if not any(name in self for name in names_of(task)):
            raise KeyError(task)
        return self.of(task)
