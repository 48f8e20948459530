"""Prometheus' own tool, which checks metrics and rules and tests the rules: promtool of Debian's package prometheus.

Only the program is taken from the package, for to install that would start a server.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import yaml
from django.conf import settings

COUNTER = re.compile(r"_(total|bucket|sum|count)({|$)")
OWN = Path(settings.BASE_DIR) / ".cache" / "promtool"


@cache
def promtool():
    """Its path; fetched into .cache when the machine has none."""
    found = shutil.which("promtool")
    if found is None and not OWN.exists():
        fetch()
    return found or str(OWN)


def fetch():
    directory = OWN.parent / "prometheus"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    run("apt-get", "download", "-qq", "prometheus", cwd=directory)
    [package] = directory.glob("*.deb")
    run("dpkg-deb", "--extract", package, directory / "files")
    (directory / "files/usr/bin/promtool").rename(OWN)
    shutil.rmtree(directory)


def run(*command, **more):
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{command[0]} {command[1]}: {done.stdout}{done.stderr}"
    return done.stdout


def ask(*arguments, stdin=""):
    """The exit code and what it prints."""
    done = subprocess.run([promtool(), *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def values(name, before, value, minutes):
    """In promtool's notation: a first value, and by how much it grows each minute."""
    begin = before.get(name, 0.0) if COUNTER.search(name) else value
    return f"{begin:.6f}{(value - begin) / minutes:+.6f}x{minutes}"


def fires(rules: Path, alert, before, after, directory, minutes):
    """Whether the alert of this name fires when all is as in `after` for so many minutes.

    `before` and `after` are two scrapes, by series; counters go evenly from the one to the other meanwhile.
    """
    series = [{"series": name, "values": values(name, before, value, minutes)} for name, value in after.items()]
    count = f'count(ALERTS{{alertname=~"{alert}",alertstate="firing"}}) or vector(0)'
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {"expr": count, "eval_time": f"{minutes}m", "exp_samples": [{"labels": "{}", "value": 0}]}
                ],
            }
        ],
    }
    path = directory / "test.yaml"
    path.write_text(yaml.safe_dump(test))
    code, said = ask("test", "rules", path)
    if code == 0:
        return False
    assert "got:" in said, said
    return True
