"""volmig as its real processes over the lab: what the demo, the benchmarks and the browser tests run against."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hosts.remote.hostctl.pack import bundle
from tests import policies
from tests.family import end_all
from tests.lab.guest import Guest
from tests.lab.lab import Lab
from tests.rig import free_port

ROOT = Path(__file__).resolve().parent.parent
PEOPLE = {"olga": ["operator"], "pavel": ["approver"], "ada": ["administrator", "operator", "approver", "auditor"]}
PASSWORD = "correct horse battery"
HYPERVISORS = ("src", "jump", "dst")


class Site:
    """One volmig with a data directory and a port of its own, any that is free unless told.

    `shipped` says how hostctl reaches the hypervisors.

    `clouds` is the clouds.yaml of the Nova that has the instances; without it libvirt has them.
    """

    def __init__(
        self, lab: Lab, data: Path, port: int = 0, *, shipped: bool = False, clouds: Path | None = None
    ) -> None:
        self.lab, self.data, self.shipped, self.clouds = lab, data, shipped, clouds
        self.port = port or free_port()
        self.more: dict[str, str] = {}  # environment
        self.supervisors: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        # The lab's share forgets directory entries at once, so the lock after a swap need not wait a minute.
        ours = {"VOLMIG_DATA": str(self.data), "VOLMIG_LEASE_SECONDS": "10", "VOLMIG_LOCK_MARGIN": "1"}
        nova = {"VOLMIG_CLOUDS_YAML": str(self.clouds)} if self.clouds else {}
        return {**os.environ, "DJANGO_SETTINGS_MODULE": "volmig.settings", **ours, **nova, **self.more}

    def manage(self, *words: str) -> None:
        subprocess.run([sys.executable, "manage.py", *words], cwd=ROOT, env=self.environment, check=True)

    def prepare(self) -> None:
        """Makes the database, lets this volmig into the lab's hosts, and registers them."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.manage("migrate", "--verbosity", "0")
        self.admit()
        wanted = {"people": PEOPLE, "password": PASSWORD, "hypervisors": [self._row(name) for name in HYPERVISORS]}
        wanted |= {"entry": "appcred"} if self.clouds else {}
        seed = [sys.executable, "-m", "tests.seed"]
        subprocess.run(seed, cwd=ROOT, env=self.environment, input=json.dumps(wanted), text=True, check=True)

    def admit(self) -> None:
        """Installs hostctl as its documentation says, or lets root in where it is shipped."""
        script = (
            "import json; from volmig import data_dir as data; [data.make(name) for name in ('ssh_key', 'seal_key')]; "
            "print(json.dumps([data.ssh_public_key(data.ssh_key()), "
            f"{{name: data.seal_key(name, 1) for name in {HYPERVISORS}}}]))"
        )
        told = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=self.environment, text=True)
        public, keys = json.loads(told)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: self._admit(self.lab.guests[name], public, keys[name]), HYPERVISORS))

    def _admit(self, guest: Guest, public: str, key: str) -> None:
        guest.install_policy(policies.content(guest.name, **policies.LAB, seal_keys=[key]))
        if self.shipped:
            guest.run("cat >> /root/.ssh/authorized_keys", stdin=public + "\n")
        else:
            guest.install_hostctl(bundle(), public)

    def _row(self, name: str) -> dict[str, object]:
        user = "root" if self.shipped else "volmig"
        address = {"address": "127.0.0.1", "port": self.lab.guests[name].port}
        return {"name": name, "user": user, "shipped": self.shipped, **address}

    def start(self, *parts: str) -> None:
        """Starts web, workers and watcher under one supervisor, or these under one each, and waits for pages."""
        for part in parts or ("all",):
            self.up(part)
        while not self.answers():
            if any(each.poll() is not None for each in self.supervisors.values()):
                raise RuntimeError(f"volmig did not start; see {self.data}/volmig.log")
            time.sleep(0.1)

    def up(self, part: str) -> None:
        with (self.data / "volmig.log").open("a") as log:
            self.supervisors[part] = subprocess.Popen(
                [sys.executable, "manage.py", "up", part, "--bind", f"127.0.0.1:{self.port}"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/healthz", timeout=1)  # noqa: S310 - our own loopback address
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def stop(self) -> None:
        end_all(self.supervisors.values(), 60, signal.SIGINT)  # twice what `up` allows its own children

    def wipe(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
