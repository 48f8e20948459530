"""What a person can do on the host itself while volmig is down: look at a job, and roll a swap back."""

import json
import sys
from typing import Any, Dict

from .request import Desk


def main(verb: str, job: str) -> int:
    answer = Desk().status(job) if verb == "status" else rollback(job)
    json.dump(answer, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


def rollback(job: str) -> Dict[str, Any]:
    return {}
