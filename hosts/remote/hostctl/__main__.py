"""Entry: a request on standard input, or by hand `status JOB`, `rollback JOB`; inside a unit `run JOB KEY`.

`install` puts the file itself into its place on a hypervisor.
"""

import json
import os
import sys
from typing import Any, Dict, List, Optional

from . import cli, transient_units
from .request import INPUT_CAP, Desk, is_field, parse

USAGE = (
    "hostctl reads one JSON request from standard input. "
    "By hand: hostctl status JOB | hostctl rollback JOB | python3 -I hostctl install\n"
)


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one request from standard input, or a command typed by root; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    os.umask(0o077)
    archive = os.path.abspath(sys.argv[0])
    os.chdir("/")
    if words == ["install"]:
        from . import install  # only this needs it

        return install.main(archive)
    if len(words) > 1 and not is_field("job", words[1]):
        sys.stderr.write("hostctl: %r is not the UUID of a job\n" % words[1])
        return 2
    if words[:1] == ["run"] and len(words) == 3:
        return Desk().run_unit(words[1], words[2])
    if words[:1] in (["status"], ["rollback"]) and len(words) == 2:
        return cli.main(words[0], words[1])
    if words in ([], ["hostctl"]):
        return _request(sys.stdin.buffer.read(INPUT_CAP + 1))
    sys.stderr.write(USAGE)
    return 2


def _request(data: bytes) -> int:
    if _is_watch(data):
        try:
            transient_units.watch()
        except (BrokenPipeError, KeyboardInterrupt):
            os._exit(0)
    _say(Desk().handle(data))
    return 0


def _is_watch(data: bytes) -> bool:
    try:
        return parse(data).verb == "watch"
    except Exception:
        return False  # whatever is wrong with it, Desk says so


def _say(answer: Dict[str, Any]) -> None:
    json.dump(answer, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
