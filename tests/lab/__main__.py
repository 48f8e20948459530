"""The lab by hand: python -m tests.lab up | down | status | reset | ssh GUEST [COMMAND…]"""

import sys

from tests.lab.lab import Lab


def status(lab: Lab) -> int:
    """Print a line for each guest; the exit status is 0 when the lab is up."""
    for guest in lab.guests.values():
        state = "up" if lab.running(guest) else "down"
        print(f"{guest.name:6} {state:5} ssh -i {lab.key} -p {guest.port} root@127.0.0.1")
    print(f"state in {lab.folder}, network namespace {lab.name}")
    return 0 if lab.is_up() else 1


def main(words: list[str]) -> int:
    """Run one command; returns its exit status."""
    match words:
        case ["up" | "down" | "reset" as verb]:
            getattr(Lab(), verb)()
            return 0
        case ["status"]:
            return status(Lab())
        case ["ssh", name, *rest] if name in Lab().guests:
            return Lab().guests[name].interactive(rest)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
