"""docs/runbook.md is carried out as it is written, on a separate Debian, from the repository to a first migration."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fleet import blocks, hypervisors
from tests.fleet.machine import Machine, NotHere, booted
from tests.trust.amounts import FULL, figure

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs/runbook.md"
PASSWORD = "correct horse battery"
SITE = "https://volmig.example.org"
PARTS = ("volmig-web@8001", "volmig-web@8002", "volmig-workers", "volmig-watcher")
NOT_RUN, ELSEWHERE = "not run: ", "on a new machine"
INSTALL = ("Install", "The first migration")
AFTERWARDS = (
    "Back up",
    "Restore drill",
    "Upgrade",
    "Rotate keys",
    "PostgreSQL is away",
    "Disk full",
    "Add a machine",
)
# By a person in a browser: logs in and makes a token; prints its letters. Names and password are arguments.
MAKE_TOKEN = """
import http.cookiejar, re, ssl, sys, urllib.parse, urllib.request
site, name, password, *verbs = sys.argv[1:]
trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile="/etc/ssl/volmig/fullchain.pem"))
browser = urllib.request.build_opener(trusted, urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
def send(path, **fields):
    page = browser.open(site + path).read().decode()
    fields["csrfmiddlewaretoken"] = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]
    sent = urllib.request.Request(site + path, urllib.parse.urlencode(fields, True).encode(), {"Referer": site + path})
    return browser.open(sent).read().decode()
send("/login/", username=name, password=password)
made = send("/account/tokens/add/", name="runbook", verbs=verbs, days="1", password=password)
print(re.search('<code class="token">([^<]+)</code>', made)[1])
"""


class Operator:
    """Whoever carries the runbook out on a machine, and does by hand what its blocks leave to a person."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def carry_out(self, chapter: str) -> str:
        """What the blocks of a chapter printed."""
        found = [each for each in blocks.of(RUNBOOK) if each.chapter == chapter]
        assert found, f"no block stands under {chapter}"
        return "".join(self.block(each) for each in found)

    def block(self, block: blocks.Block) -> str:
        began = time.monotonic()
        self.before(block)
        printed = self.treat(block)
        print(f"{time.monotonic() - began:5.1f} s  {block}", flush=True)
        return printed

    def treat(self, block: blocks.Block) -> str:
        if block.remark.startswith((NOT_RUN, ELSEWHERE)):
            return ""
        if block.remark == "these packages are there":
            return self.machine.run(f"dpkg --status {' '.join(packages(block))} >/dev/null").stdout
        if block.remark.startswith('types "'):
            people = block.script.count("volmig-manage admin")
            return self.machine.type(block.script, *people * [("Password", PASSWORD), ("Again", PASSWORD)])
        assert block.remark in ("", "with the network of this machine", "after the hypervisors have it")
        return self.machine.run(block.script, network="with the network" in block.remark).stdout

    def before(self, block: blocks.Block) -> None:
        """What the page says in words, or takes for granted."""
        if "~/hypervisors" in block.script and block.chapter == "The first migration":
            self.hypervisors()
        if "token-of-olga" in block.script and "preflight" in block.script:
            self.machine.until(self.is_well, "volmig is well")
        if block.remark == "after the hypervisors have it":
            refused = self.machine.run(block.script).stdout
            assert refused.count("does not take the new key") == len(hypervisors.HOSTS)
            self.machine.run("cd /etc/volmig/keys && key ssh_key.next.pub")
        if "db.example.org" in block.script and not block.remark:  # the second machine is this one by another address
            self.machine.run("ip address add 192.0.2.12/32 dev lo; echo 192.0.2.12 db.example.org >>/etc/hosts")
        if block.chapter == "Upgrade" and "install-release" in block.script:
            self.machine.run("""
                cd /root/volmig && git commit --quiet --allow-empty --message next
                before=$(ls /opt)
                ! PIP_NO_INDEX=1 ./packaging/systemd/install-release
                [ "$(ls /opt)" = "$before" ] || { echo "an installation that failed left something"; exit 1; }
            """)
        if "register" not in block.script and "/api/client" in block.script:
            for name, verb in {"ada": "administer", "olga": "submit", "pavel": "approve"}.items():
                self.token(name, verb)

    def token(self, name: str, *verbs: str) -> None:
        words = " ".join(shlex.quote(word) for word in (MAKE_TOKEN, SITE, name, PASSWORD, *verbs))
        folder = "~/.config/volmig"
        self.machine.run(f"umask 077; mkdir -p {folder}; /usr/bin/python3 -c {words} >{folder}/token-of-{name}")

    def hypervisors(self) -> None:
        """Three of them, and in ~/hypervisors what an operator wrote down in front of their consoles."""
        folder, addresses = "/srv/hypervisors", [address for address, _, _ in hypervisors.HOSTS.values()]
        lines = "\n".join(f"{name} {at} $fingerprint" for name, (at, _, _) in hypervisors.HOSTS.items())
        serve = [sys.executable, "-m", "tests.fleet.hypervisors", folder]
        self.machine.run(f"""
            for each in {" ".join(addresses)}; do ip address add $each/32 dev lo; done
            mkdir -p {folder} /run/sshd
            cat >{folder}/hostctl <<'END'
{hypervisors.FORWARD % {"folder": folder}}
END
            chmod 755 {folder}/hostctl
            ssh-keygen -q -t ed25519 -N '' -f {folder}/host_key
            useradd --system --gid nogroup --create-home --shell /bin/sh volmig
            cat >/usr/local/bin/key <<'END'
#!/bin/sh
echo "restrict,command=\\"{folder}/hostctl\\" $(cat $1)" >>{folder}/authorized_keys
END
            chmod 755 /usr/local/bin/key
            key /etc/volmig/keys/ssh_key.pub
            cat >{folder}/sshd_config <<'END'
{hypervisors.SSHD % {"folder": folder}}
END
            fingerprint=$(ssh-keygen -lf {folder}/host_key.pub | cut -d' ' -f2)
            cat >~/hypervisors <<END
{lines}
END
            systemd-run --quiet --unit=hypervisors --working-directory={ROOT} --setenv=VOLMIG_DATA={folder}/data \\
              --setenv=VOLMIG_KEYS_WEB=/etc/volmig/keys --setenv=DJANGO_SETTINGS_MODULE=volmig.settings \\
              {" ".join(serve)}
            systemd-run --quiet --unit=sshds /usr/sbin/sshd -D -e -f {folder}/sshd_config
            until [ -S {folder}/socket ]; do sleep 0.1; done
        """)

    def is_well(self) -> bool:
        asked = f"curl -fsS --cacert /etc/ssl/volmig/fullchain.pem {SITE}/healthz"
        return self.machine.run(asked, check=False).stdout.count('"state": "ok"') == 3

    def survive(self) -> None:
        """A unit that is killed comes back; without PostgreSQL none ends; one whose key is missing makes no other."""
        restarts = "systemctl show --property=NRestarts --value volmig-web@8001 volmig-watcher | xargs"
        self.machine.run("systemctl kill --signal=KILL volmig-workers")
        self.machine.until(lambda: self.restarted("volmig-workers"), "the workers were started again")
        before = self.machine.run(restarts).stdout
        self.machine.run("systemctl stop postgresql; sleep 20; systemctl start postgresql")
        self.machine.until(self.is_well, "volmig is well after 20 s without PostgreSQL")
        assert self.machine.run(restarts).stdout == before
        keys = "/etc/volmig/keys"
        self.machine.run(
            f"mv {keys}/seal_key {keys}/away; ! systemctl restart volmig-web@8002; mv {keys}/away {keys}/seal_key"
        )
        assert (
            "CREDENTIALS"
            in self.machine.run(
                "systemctl show --property=ExecMainStatus,Result volmig-web@8002; "
                "journalctl --unit=volmig-web@8002 --lines=20"
            ).stdout
        )
        self.machine.run("systemctl restart volmig-web@8002")
        self.machine.run("""
            mkdir -p /run/systemd/system/volmig-watcher.service.d
            printf '[Service]\\nWatchdogSec=5\\n' >/run/systemd/system/volmig-watcher.service.d/short.conf
            systemctl daemon-reload && systemctl restart volmig-watcher
            kill -STOP $(systemctl show --property=MainPID --value volmig-watcher)
        """)
        self.machine.until(lambda: self.restarted("volmig-watcher"), "the watcher that hangs was started again")
        self.machine.run("rm -r /run/systemd/system/volmig-watcher.service.d && systemctl daemon-reload")

    def restarted(self, unit: str) -> bool:
        shown = self.machine.run(f"systemctl show --property=NRestarts,ActiveState {unit}").stdout
        return "NRestarts=1" in shown and "ActiveState=active" in shown

    def others_may_connect(self) -> None:
        """As the workers of the new machine will: with TLS, by a name that the certificate has, with the password."""
        self.machine.run("""
            install -m 0644 /etc/postgresql/15/main/server.crt /etc/volmig/db-ca.pem
            . /root/volmig-db && cd /
            uses_tls() { runuser -u volmig-worker -- psql "$1" -Atc \
              'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'; }
            [ "$(uses_tls "$VOLMIG_DB")" = t ]
            if uses_tls "${VOLMIG_DB/@db.example.org/@192.0.2.12}"; then echo "any name will do"; exit 1; fi
        """)

    def figures(self) -> None:
        """What docs/sizing.md has of one machine at rest."""
        for unit in (*PARTS, "postgresql@15-main", "nginx"):
            pids = f"$(cat /sys/fs/cgroup$(systemctl show --property=ControlGroup --value {unit})/cgroup.procs)"
            summed = "awk '$1 == \"Pss:\" { kilobytes += $2 } END { print kilobytes }'"
            kilobytes = self.machine.run(
                f"for pid in {pids}; do cat /proc/$pid/smaps_rollup || true; done 2>/dev/null | {summed}"
            ).stdout
            figure(f"one machine at rest | {unit}: {int(kilobytes) / 1024:.0f} MiB of memory")
        open_ones = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'volmig' AND pid <> pg_backend_pid()"
        count = self.machine.run(f'cd / && runuser -u postgres -- psql -d volmig -Atc "{open_ones}"').stdout.strip()
        figure(f"one machine at rest | {count} connections of PostgreSQL")
        size = self.machine.run("du -sm /opt/volmig/ | cut -f1").stdout.strip()
        figure(f"one machine at rest | {size} MiB for a release with its packages")


def packages(block: blocks.Block) -> list[str]:
    return [word for word in re.search(r"apt-get install (.+)", block.script)[1].split() if not word.startswith("-")]


@contextmanager
def bare() -> Iterator[Machine]:
    """A machine with only Debian and a clone of the repository."""
    folder = Path(tempfile.mkdtemp(prefix="volmig-machine-"))
    try:
        with booted(folder) as machine:
            machine.run("echo 127.0.0.1 volmig.example.org >>/etc/hosts")
            machine.run(clone())
            yield machine
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    try:
        with bare() as machine:
            yield Operator(machine)
    except NotHere as why:
        pytest.skip(str(why))


def clone() -> str:
    """A script that makes /root/volmig of this checkout's files as they are now, committed or not."""
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    there = "\n".join(name for name in names if (ROOT / name).exists())
    return f"""
        mkdir /root/volmig && cd /root/volmig
        tar -C {ROOT} --create --files-from=- <<'END' | tar -x
{there}
END
        git config --global user.name Operator && git config --global user.email operator@volmig.example.org
        git init --quiet && git add --all && git commit --quiet --message release
    """


def test_the_runbook_leads_from_the_repository_to_a_first_migration_and_through_its_whole_life(operator):
    machine = operator.machine
    operator.carry_out("Install")
    states = machine.run(f"systemctl is-active {' '.join(PARTS)} nginx postgresql").stdout.split()
    assert set(states) == {"active"}
    assert "done" in operator.carry_out("The first migration")
    owners = machine.run("stat -c '%U %a %n' /var/lib/volmig-shared/* /etc/volmig/keys/*").stdout
    assert not re.search(r"^\S+ \d\d[1-7] ", owners, re.MULTILINE), f"others may read some of\n{owners}"
    operator.figures()
    if FULL:
        operator.survive()
        for chapter in AFTERWARDS:
            assert "does not take the new key" not in operator.carry_out(chapter)
            machine.until(operator.is_well, f"volmig is well after {chapter}")
        operator.others_may_connect()
        assert "The audit log is intact" in machine.run("volmig-manage verify_audit").stdout
        replace_lost(machine)


def replace_lost(lost: Machine) -> None:
    """Another machine takes the place of this one, from its newest backup."""
    newest = lost.run("ls -t /srv/backup/volmig-*.tar.gz | head -1").stdout.strip()
    backup = Path(f"/proc/{lost.init}/root{newest}").read_bytes()
    lost.run("systemctl stop volmig.target nginx")
    left_out = ("ssh-keygen", "volmig-migrate", "volmig.target volmig-web", "/etc/ssl/volmig", "nginx -t")
    with bare() as machine:
        Path(f"/proc/{machine.init}/root/root/volmig-backup.tar.gz").write_bytes(backup)
        another = Operator(machine)
        for block in blocks.of(RUNBOOK):
            if block.chapter == "Install" and not any(word in block.script for word in left_out):
                another.block(block)
        [restored] = [each for each in blocks.of(RUNBOOK) if each.remark == ELSEWHERE]
        printed = machine.run(restored.script).stdout
        assert "The audit log is intact" in printed
        assert "volmig is read-only since" in printed
        machine.run(f"systemctl is-active {' '.join(PARTS)}")
        count = "cd / && runuser -u postgres -- psql -d volmig -Atc 'SELECT count(*) FROM jobs_job'"
        assert machine.run(count).stdout.strip() == "2"


def test_every_block_of_the_runbook_is_carried_out_or_says_why_not():
    found = blocks.of(RUNBOOK)
    not_run = [str(each) for each in found if each.remark.startswith(NOT_RUN)]
    assert {each.chapter for each in found} == {*INSTALL, *AFTERWARDS, "Lose a machine"}
    assert [name.partition(":")[0] for name in not_run] == ["Add a machine"]
    assert len(found) == RUNBOOK.read_text().count("```sh\n"), "a block was overlooked"
