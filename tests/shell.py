"""A person's shell with the command-line client in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from volmig import client

FILE = Path(client.__file__)
MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_PROCESS_")}


class Shell:
    """`run` gives the exit code, what was printed, and what was said."""

    def __init__(self, url, letters, home):
        self.environment = {
            "VOLMIG_URL": url,
            "VOLMIG_TOKEN": letters,
            "XDG_CONFIG_HOME": str(home),
            "PATH": "",
            **MEASURED,
        }

    def start(self, *words, **environment):
        env = {name: value for name, value in {**self.environment, **environment}.items() if value}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, FILE, *words], env=env, text=True, **pipes)

    def run(self, *words, seconds=60, **environment):
        with self.start(*words, **environment) as program:
            printed, said = program.communicate(timeout=seconds)
        return program.returncode, printed, said

    def json(self, *words):
        code, printed, said = self.run(*words, "--json")
        assert code == 0, said
        return json.loads(printed)
