"""What a loop does from time to time."""

import time


class Timetable:
    """When each thing, by its name, is due next; at first everything is. In seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}

    def is_due(self, what: str, every: float) -> bool:
        """Whether it is due; then it is not for the next `every` seconds."""
        now = time.monotonic()
        if now < self.due.get(what, now):
            return False
        self.due[what] = now + every
        return True

    def put_off(self, what: str, seconds: float) -> None:
        """It is due so much later than it would be."""
        self.due[what] += seconds

    def reset(self) -> None:
        """Everything is due."""
        self.due.clear()

    def seconds_left(self) -> float:
        """Until the first of it is due; 0 when something is, or when nothing was ever done."""
        return max(0.0, min(self.due.values(), default=0.0) - time.monotonic())
