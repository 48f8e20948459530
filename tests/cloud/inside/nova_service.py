"""Runs a Nova service as the tests want it: python nova_service.py compute|conductor|scheduler --config-file FILE…

Three differences to nova-<service>: the driver beside this file can be loaded, the service reports itself as up at
once instead of after five seconds, and it is one process instead of a parent with one worker.
"""

import importlib
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    name = sys.argv.pop(1)
    sys.argv[0] = f"nova-{name}"
    command = importlib.import_module(f"nova.cmd.{name}")  # first: it decides how threads are made

    import nova.service
    import nova.servicegroup.api
    import nova.virt

    nova.virt.__path__.append(str(Path(__file__).parent))  # Nova loads drivers from its own package only
    nova.servicegroup.api.INITIAL_REPORTING_DELAY = 0
    if name != "compute":
        nova.service.serve = partial(nova.service.serve, no_fork=True)
    command.main()
