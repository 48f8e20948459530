"""packaging/container and packaging/compose, without a container engine.

The build's commands run as they stand on a separate Debian (tests/fleet/machine.py), and each service of the compose
file is then started there by systemd as the same user, with the same command, environment, secrets, capabilities and a
read-only root. What is not tried: the base images, images' layers, networks and restarts of an engine.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.fleet.machine import NotHere
from tests.fleet.test_runbook import bare
from volmig import data_dir, environment, keys

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "packaging/container/Containerfile"
COMPOSE = ROOT / "packaging/compose/compose.yaml"
MINE = ("migrate", "web-1", "web-2", "workers", "watcher", "manage")
SITE = "volmig.example.org"
APT = re.compile(r"apt-get update && apt-get install [^&]*&& rm -rf /var/lib/apt/lists/\*")


def instructions():
    """Pairs such as ("RUN", "…"), in their order."""
    text = "".join(line + "\n" for line in CONTAINERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def last(name):
    return [words for each, words in instructions() if each == name][-1]


def sources():
    """What is copied from the repository, with where it goes."""
    pairs = []
    for name, words in instructions():
        if name == "COPY" and not words.startswith("--from"):
            *names, target = words.split()
            pairs += [(each, target) for each in names]
    return pairs


def services():
    return yaml.safe_load(COMPOSE.read_text().replace("${SITE}", SITE).replace("${SITE:?", "${"))["services"]


def settings_of(service):
    return {name: re.sub(r"\$\{[^}]*\}", SITE, str(value)) for name, value in service.get("environment", {}).items()}


def secrets_of(service):
    """Name of the secret's file, and its name in the container."""
    pairs = [each if isinstance(each, dict) else {"source": each, "target": each} for each in service["secrets"]]
    return [(pair["source"], pair["target"]) for pair in pairs]


def test_what_is_copied_is_there_and_let_through():
    let_through = (ROOT / "packaging/container/Containerfile.dockerignore").read_text().splitlines()
    assert let_through[0] == "*"
    for name, _ in sources():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_through


def test_every_package_of_the_repository_is_in_the_image():
    packages = {path.parent.name for path in ROOT.glob("*/apps.py")}
    assert packages <= {name for name, _ in sources()}
    assert {"volmig", "hosts", "jobs"} <= packages


def test_a_user_without_rights_runs_what_was_built_from_the_lock():
    stages = [words for name, words in instructions() if name == "FROM"]
    assert stages == ["python:3.11-slim-bookworm AS build", "python:3.11-slim-bookworm"]
    assert last("USER") == "64010:64010"
    built = next(words for name, words in instructions() if name == "RUN")
    assert "--require-hashes -r requirements.lock" in built
    final = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    assert not any(
        word in words for name, words in final if name == "RUN" for word in ("pip", "gcc", "build-essential")
    )


@pytest.mark.skipif(not shutil.which("hadolint"), reason="no hadolint on this machine")
def test_hadolint_has_no_objection():
    done = subprocess.run(["hadolint", str(CONTAINERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_variable_is_known():
    given = {name for each in services().values() for name in each.get("environment", {}) if name.startswith("VOLMIG_")}
    given |= set(re.findall(r"VOLMIG_\w+(?==)", CONTAINERFILE.read_text()))
    assert "VOLMIG_KEYS_WEB" in given
    assert {name.removeprefix("VOLMIG_") for name in given} <= environment.READ


@pytest.mark.parametrize("name", [*MINE, "database", "proxy"])
def test_a_service_is_confined_and_says_how_it_is_seen_to_be_well(name):
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    is_pages = name.startswith("web-")
    assert ("healthcheck" in service) is not is_pages, "that of pages is in the image"
    uid = service.get("user", "").split(":")[0]
    assert uid == {"web-1": "64010", "web-2": "64010", "database": "999", "proxy": "", "manage": "0"}.get(name, "64011")


@pytest.mark.parametrize("name", MINE)
def test_a_container_is_named_after_its_machine_and_its_service(name):
    """Sentences about keys, heartbeats and logs name the host: else it would be the ID of a container, which nobody
    recognises, and of which the next one has another."""
    named = services()[name]["hostname"]
    assert named == "${MACHINE:-compose}-" + name
    assert re.fullmatch(r"[a-z0-9-]{1,63}", named.replace("${MACHINE:-compose}", "volmig-host-1"))


def test_the_sentence_about_keys_that_differ_names_the_containers(monkeypatch, tmp_path, settings, db):
    def on(service):
        monkeypatch.setattr(
            "socket.gethostname", lambda: services()[service]["hostname"].replace("${MACHINE:-", "").replace("}", "")
        )
        (tmp_path / service).mkdir()
        monkeypatch.setenv("VOLMIG_KEYS_WORKER", str(tmp_path / service))
        monkeypatch.setenv("VOLMIG_PART", "workers")

    on("migrate")
    (tmp_path / "migrate/ssh_key").write_bytes(data_dir.new("ssh_key"))
    keys.register("ssh_key")
    on("watcher")
    (tmp_path / "watcher/ssh_key").write_bytes(data_dir.new("ssh_key"))
    (said,) = keys.mismatches(["ssh_key"])
    assert said.startswith("Machine compose-watcher has another ssh_key (not the one that machine compose-migrate")


@pytest.mark.parametrize("name", [each for each in MINE if each not in ("migrate", "manage")])
def test_a_part_waits_for_the_database_and_its_migration(name):
    service = services()[name]
    assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert "--no-prepare" in service["command"]


@pytest.mark.parametrize("name", [each for each in MINE if each != "manage"])
def test_a_service_gets_the_keys_of_its_kind_and_no_others(name):
    from volmig.data_dir import OWNERS

    kind = "web" if name.startswith("web-") else "worker"
    given = {target for _, target in secrets_of(services()[name])}
    assert given == {"pgpass", *(key for key, owner in OWNERS.items() if owner == kind)}
    assert settings_of(services()[name])[f"VOLMIG_KEYS_{kind.upper()}"] == "/run/secrets"


def test_secrets_are_made_once_for_whom_they_are(tmp_path):
    if not Path("/usr/bin/openssl").exists():
        pytest.skip("no openssl on this machine")
    make = ["sh", str(ROOT / "packaging/compose/make-secrets"), str(tmp_path)]
    subprocess.run(make, check=True, capture_output=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    subprocess.run(make, check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    declared = yaml.safe_load(COMPOSE.read_text())["secrets"]
    assert {*before, "tls_certificate", "tls_key"} == {*declared, "ssh_key.pub"}
    for name, service in services().items():
        for source, _ in secrets_of(service):
            uid, made = service.get("user", "").split(":")[0], tmp_path / source
            if made.exists() and name != "manage":
                assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (int(uid), 0o400), (name, source)


# On a separate Debian


@pytest.fixture(scope="module")
def image():
    """A machine on which the build's commands were carried out, with the compose file's secrets and database."""
    try:
        with bare() as machine:
            machine.run("ln -s /usr/bin/python3 /usr/local/bin/python; rm -rf /opt/volmig")
            build(machine)
            machine.run(DATABASE)
            yield machine
    except NotHere as why:
        pytest.skip(str(why))


DATABASE = """
cd /root/volmig/packaging/compose && ./make-secrets
echo 127.0.0.1 database >>/etc/hosts
systemctl start postgresql
password=$(cat secrets/database_password)
cd / && runuser -u postgres -- psql -qc "CREATE ROLE volmig LOGIN PASSWORD '$password'"
runuser -u postgres -- createdb -O volmig volmig
"""


def build(machine):
    """Runs every instruction in its order; both stages on one root, so what is copied between them is there already."""
    work = "/"
    for name, words in instructions():
        if name == "WORKDIR":
            work = words
            machine.run(f"mkdir -p {work}")
        elif name == "COPY" and words.startswith("--from=build"):
            _, source, target = words.split()
            assert source == target
        elif name == "COPY":
            machine.run(f"cd {work}\n" + "\n".join(copies(words)))
        elif name == "RUN":
            script = APT.sub("command -v pg_dump pg_restore", words)
            machine.run(f"cd {work} && {script}", network="pip install" in words)


def copies(words):
    """Commands that do what COPY does."""
    *names, target = words.split()
    for each in names:
        if (ROOT / each).is_dir():
            yield f"mkdir -p {target} && cp -rT /root/volmig/{each} {target}"
        else:
            yield f"install -D -m 0644 /root/volmig/{each} {target + each if target.endswith('/') else target}"


def started(machine, name, command=(), wait=False):
    """Starts a service of the compose file by systemd, which confines it as the file has an engine confine it."""
    service = services()[name]
    folder = "/root/volmig/packaging/compose/secrets"
    image = dict(pair.split("=", 1) for pair in shlex.split(last("ENV")))
    user, group = service["user"].split(":")
    capabilities = " ".join(f"CAP_{each}" for each in service.get("cap_add", []))
    properties = {
        "User": user, "Group": group, "WorkingDirectory": last("WORKDIR"), "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": capabilities, "ProtectSystem": "strict", "PrivateTmp": "yes", "KillMode": "mixed",
        "ReadWritePaths": "/var/lib/volmig-shared", "TemporaryFileSystem": "/run/secrets",
        "TimeoutStopSec": service["stop_grace_period"],
    }  # fmt: skip
    words = ["systemd-run", "--quiet", f"--unit={name}", *(["--wait", "--pipe"] if wait else [])]
    words += [f"--property={key}={value}" for key, value in properties.items()]
    words += [f"--property=BindReadOnlyPaths={folder}/{file}:/run/secrets/{at}" for file, at in secrets_of(service)]
    words += [f"--setenv={key}={value}" for key, value in {**image, **settings_of(service)}.items()]
    return machine.run(shlex.join([*words, *json.loads(last("ENTRYPOINT")), *(command or service["command"])])).stdout


def asked(path, *words):
    """A request to the pages in the container, as the proxy passes it on."""
    headers = ("-H", f"Host: {SITE}", "-H", "X-Forwarded-Proto: https")
    return shlex.join(["curl", "-fsS", *headers, *words, f"http://127.0.0.1:8000{path}"])


def test_services_of_the_compose_file_run_from_what_was_built_on_a_read_only_root(image):
    assert "The database is prepared" in started(image, "migrate", wait=True)
    for name in ("web-1", "workers", "watcher"):
        started(image, name)
    probe = shlex.join(json.loads(last("HEALTHCHECK").partition("CMD ")[2]))
    healthy = f"cd {last('WORKDIR')} && VOLMIG_ALLOWED_HOSTS={SITE} {probe}"
    image.until(lambda: image.run(healthy, check=False).returncode == 0, "the image's health check succeeds")
    health = asked("/healthz")
    image.until(lambda: image.run(health, check=False).stdout.count('"state": "ok"') == 3, "all parts are well")
    style = re.search(r'href="(/static/[^"]+\.[0-9a-f]{12}\.css)"', image.run(asked("/login/")).stdout)
    assert style, "static files were not collected"
    assert "text/css" in image.run(asked(style[1], "-o", "/dev/null", "-w", "%{content_type}")).stdout
    assert "The audit log is intact" in started(image, "manage", ["verify_audit"], wait=True)
    modes = image.run("stat -c '%G %a %n' /var/lib/volmig-shared/*").stdout
    assert not re.search(r"^\S+ \d\d[1-7] ", modes, re.MULTILINE), f"others may read some of\n{modes}"
    image.run("systemctl stop web-1 workers watcher")
    assert "Killing process" not in image.journal(200), "a part did not end when it was asked to"
