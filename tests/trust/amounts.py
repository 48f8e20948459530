"""How much a test of trust does: all of it for `make trust`, a sample in `make test`."""

import os

FULL = os.environ.get("TRUST") == "full"


def amount(full: int, sample: int) -> int:
    """The number of cases to try: `full` where the whole figure is asked for, `sample` everywhere else."""
    return full if FULL else sample


def figure(sentence: str) -> None:
    """Prints one figure of `make trust`; pytest shows it with -s."""
    print(f"\ntrust | {sentence}", flush=True)
