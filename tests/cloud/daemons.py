"""Starts the services of one control plane in the order that they need, and waits until each answers."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.cloud import processes
from tests.cloud.config import APIS, Place
from tests.rig import LOOPBACK

HERE = Path(__file__).parent
INSIDE = HERE / "inside"
THREADS = "4"
WAIT = 180  # seconds; a machine that is busy with other tests takes several times its usual


class NotUpError(Exception):
    """A service ended or did not answer in time; the message names its log."""


class Services:
    """The processes of the plane at `place`."""

    def __init__(self, place: Place) -> None:
        self.place = place

    # Stores

    def start_stores(self) -> None:
        """Start MariaDB, RabbitMQ and the proxy; returns when the database answers."""
        self._mariadb()
        self._rabbit()
        self._proxy()
        self._wait("mariadb", lambda: self._sql("select 1").returncode == 0)

    def stop_stores(self) -> None:
        """End all processes, MariaDB so that its files can be copied."""
        for service in set(processes.living(self.place.name).values()) - {"mariadb"}:
            processes.kill(self.place.name, service)
        processes.terminate(self.place.name, "mariadb")

    def create_databases(self) -> None:
        """Make an empty data directory; the database server must not run."""
        program = ["/usr/bin/mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={self._data}"]
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run([*program, *options], check=True, capture_output=True)

    def sql(self, statements: str) -> list[list[str]]:
        """Run SQL statements; returns the rows that they gave, as text."""
        done = self._sql(statements)
        if done.returncode:
            raise RuntimeError(f"the database refused: {done.stderr.strip()}\n{statements}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    # APIs and Nova's services

    def start_keystone(self) -> None:
        place = self.place
        self._web("keystone", "identity", "keystone.wsgi.api", OS_KEYSTONE_CONFIG_FILES=str(place.etc("keystone.conf")))

    def start_placement(self) -> None:
        self._web("placement", "placement", "placement.wsgi.api", OS_PLACEMENT_CONFIG_DIR=self._etc)

    def start_other_apis(self) -> None:
        self._web(
            "nova-api", "compute", "nova.wsgi.osapi_compute",
            OS_NOVA_CONFIG_DIR=self._etc, OS_NOVA_CONFIG_FILES="api-paste.ini;nova.conf;nova-db.conf",
        )  # fmt: skip
        self._web("glance", "image", "glance.wsgi.api", OS_GLANCE_CONFIG_DIR=self._etc)
        neutron = {"OS_NEUTRON_CONFIG_DIR": self._etc, "OS_NEUTRON_CONFIG_FILES": "neutron.conf"}
        self._web("neutron", "network", "neutron_app", **neutron)

    def start_nova(self) -> None:
        """Start what is not an API; keystone, placement and RabbitMQ must answer before."""
        self._nova("conductor", "nova-db.conf")
        self._nova("scheduler", "nova-db.conf")
        for host in self.place.hosts:
            self.start_compute(host)

    def start_compute(self, host: str) -> None:
        self._nova("compute", f"compute-{host}.conf", f"nova-compute-{host}")

    def wait_api(self, service: str, api: str) -> None:
        """Return when an API answers anything but an error of its server; the proxy says 502 while it is not there."""
        self._wait(service, lambda: _answers(self.place.url(api)))

    def wait_rabbit(self) -> None:
        self._wait("rabbitmq", lambda: self._listens(self.place.rabbit))

    def wait_nova(self, *hosts: str) -> None:
        """Return when Nova's services have reported themselves since `forget_reports`."""
        wanted = {("nova-compute", host) for host in hosts}
        if not hosts:
            wanted = {("nova-conductor", "controller"), ("nova-scheduler", "controller")}
            wanted |= {("nova-compute", host) for host in self.place.hosts}
        query = "select `binary`, host from nova_cell1.services where report_count > 0 and deleted = 0"
        self._wait("nova", lambda: wanted <= {(row[0], row[1]) for row in self.sql(query)})

    def forget_reports(self, *hosts: str) -> None:
        """Have Nova take its services (or the computes of some hosts) for long silent until they report again."""
        where = f"where host in ({','.join(repr(host) for host in hosts)})" if hosts else ""
        self.sql(f"update nova_cell1.services set report_count = 0, last_seen_up = '2001-01-01' {where}")

    # Commands that set up

    def manage_nova(self, *arguments: str) -> str:
        files = (
            "--config-file",
            str(self.place.etc("nova.conf")),
            "--config-file",
            str(self.place.etc("nova-db.conf")),
        )
        return self.manage("nova-manage", *files, *arguments)

    def discover_hosts(self) -> None:
        """Have every compute known to its cell; else the scheduler would never use it."""
        self.manage_nova("cell_v2", "discover_hosts")

    def manage(self, program: str, *arguments: str) -> str:
        """Run one of OpenStack's own setup commands; returns its standard output."""
        argv = [str(word) for word in (self._python, self.place.installation.bin / program, *arguments)]
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": str(self.place.folder)}
        done = subprocess.run(argv, env=clean, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"status {done.returncode} from {' '.join(argv)}\n{done.stderr[-3000:]}")
        return done.stdout

    # Within

    @property
    def _python(self) -> Path:
        return self.place.installation.bin / "python"

    @property
    def _data(self) -> Path:
        return self.place.folder / "mariadb"

    @property
    def _etc(self) -> str:
        return str(self.place.folder / "etc")

    def _start(self, service: str, argv: list[str | Path], **environment: str) -> None:
        enter = ["/usr/sbin/ip", "netns", "exec", self.place.namespace] if self.place.namespace else []
        processes.start(self.place.name, service, [*enter, *argv], self.place.folder, **environment)

    def _proxy(self) -> None:
        """Outside the namespace, if there is one: its clients are."""
        place = self.place
        ways = [f"{api}:{place.public(api)}:{place.address}:{place.internal(api)}" for api in APIS]
        argv = [sys.executable, HERE / "proxy.py", place.folder, place.namespace, *ways]
        processes.start(place.name, "proxy", argv, place.folder)

    def _mariadb(self) -> None:
        # What a power cut would lose is no loss here, so nothing waits for the disk.
        careless = ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--innodb-flush-method=nosync"]
        small = ["--innodb-buffer-pool-size=96M", "--innodb-log-file-size=16M", "--performance-schema=OFF"]
        private = ["--skip-networking", f"--socket={self.place.socket}", "--max-connections=400"]
        own = ["--no-defaults", "--user=root", f"--datadir={self._data}", "--skip-name-resolve"]
        self._start("mariadb", ["/usr/sbin/mariadbd", *own, *private, *small, *careless])

    def _rabbit(self) -> None:
        place = self.place
        epmd = {"ERL_EPMD_ADDRESS": LOOPBACK, "ERL_EPMD_PORT": str(place.epmd)}
        self._start("epmd", ["/usr/bin/epmd", "-address", LOOPBACK, "-port", str(place.epmd)], **epmd)
        idle = "+sbwt none +sbwtdcpu none +sbwtdio none +S 1:1"
        own = {
            "NODENAME": f"{place.name}@localhost", "CONF_ENV_FILE": place.etc("rabbitmq-env.conf"),
            "CONFIG_FILE": place.etc("rabbitmq.conf"), "ENABLED_PLUGINS_FILE": place.etc("rabbitmq-plugins"),
            "MNESIA_BASE": place.folder / "rabbit", "LOG_BASE": place.folder / "rabbit",
            "PID_FILE": place.folder / "rabbit/pid", "DIST_PORT": place.distribution,
            "SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {{127,0,0,1}} {idle}",
        }  # fmt: skip
        environment = {f"RABBITMQ_{name}": str(value) for name, value in own.items()}
        self._start("rabbitmq", ["/usr/lib/rabbitmq/bin/rabbitmq-server"], **environment, **epmd)

    def _web(self, service: str, api: str, module: str, **environment: str) -> None:
        address = f"{self.place.address}:{self.place.internal(api)}"
        uwsgi = [self._python, self.place.installation.bin / "uwsgi", "--http-socket", address]
        # Without that header clients wait for more on connections that uwsgi has closed.
        options = ["--need-app", "--die-on-term", "--disable-logging", "--add-header", "Connection: close"]
        options += ["--enable-threads", "--threads", THREADS, "--buffer-size", "65535", "--pythonpath", str(INSIDE)]
        self._start(service, [*uwsgi, *options, "--module", f"{module}:application"], **environment)

    def _nova(self, name: str, extra: str, service: str = "") -> None:
        files = ["--config-file", self.place.etc("nova.conf"), "--config-file", self.place.etc(extra)]
        self._start(service or f"nova-{name}", [self._python, INSIDE / "nova_service.py", name, *files])

    def _sql(self, statements: str) -> subprocess.CompletedProcess[str]:
        client = ["/usr/bin/mariadb", "--no-defaults", "--user=root", f"--socket={self.place.socket}", "-BN"]
        return subprocess.run(client, input=statements, capture_output=True, text=True, timeout=60)

    def _listens(self, port: int) -> bool:
        """Whether anything listens on a port, in the namespace where RabbitMQ is."""
        found = processes.living(self.place.name, "rabbitmq")
        tables = [Path(f"/proc/{pid}/net/{family}") for pid in found for family in ("tcp", "tcp6")]
        return any(f":{port:04X} 00000000" in table.read_text() for table in tables if table.exists())

    def _wait(self, service: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not holds():
            alive = set(processes.living(self.place.name).values())
            ended = sorted(log.stem for log in self.place.folder.glob("log/*.log") if log.stem not in alive)
            if ended or time.monotonic() > deadline:
                raise NotUpError(f"{service} is not up; ended: {ended or 'none'}; see {self.place.folder / 'log'}")
            time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own loopback address
            return bool(answer.status < 500)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
