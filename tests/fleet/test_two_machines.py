"""Two machines, each with its own data directory, over one PostgreSQL: real processes, as operators start them."""

import shutil

import psycopg
import pytest

from tests import postgresql
from tests.fleet.parts import PASSWORD, SHARED, Machine, can_have_names, fetched, keys_in, logged_in, rows, until
from tests.rig import free_port
from tests.trust.amounts import amount, figure
from volmig.database import is_wrong

pytestmark = pytest.mark.skipif(postgresql.programs() is None, reason="needs PostgreSQL's package")


@pytest.fixture(scope="module")
def database():
    with postgresql.cluster() as address:
        yield address


@pytest.fixture
def machines(tmp_path, database):
    made = []

    def make(name, address=database, **more):
        made.append(Machine(tmp_path, name, address, **more))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_a_second_machine_is_refused_with_what_to_copy_and_works_as_documented(machines, database):
    port = free_port()
    web = machines("web1", VOLMIG_ADMIN_USER="ada", VOLMIG_ADMIN_PASSWORD=PASSWORD)
    web.up("web", "--bind", f"127.0.0.1:{port}")
    until(lambda: fetched(port, "/healthz") == 200)
    assert set(keys_in(web.data)) == {"secret_key", "factor_key", "seal_key", *SHARED}

    workers = machines("wrk1")
    said = workers.refused("workers")
    for name in SHARED:
        assert f"{web.data / name}" in said
        assert f"{workers.data / name}" in said
    sentence = said.strip().splitlines()[-1]
    if can_have_names():
        assert "Machine wrk1 has no audit_key, evidence_key, sealing_keys" in sentence
        assert "machine web1 registered" in sentence
    if amount(1, 0):
        (workers.data / "audit_key").write_text("x" * 64)
        assert "has another audit_key" in workers.refused("workers")
        assert "has another audit_key" in workers.manage("keys", status=1)

    for name in SHARED:
        shutil.copy(web.data / name, workers.data / name)
    workers.up("workers")
    until(lambda: "volmig is read-only" in workers.log("workers"))
    assert set(keys_in(workers.data)) == {"worker_key", "ssh_key", *SHARED}
    workers.manage("adopt", "--join", "--as", "ada", typed="join\n")
    until(lambda: rows(database, "SELECT 1 FROM record_publisher WHERE seq > 0"))
    ((path,),) = rows(database, "SELECT path FROM record_publisher")
    assert path == str(workers.data / "audit_heads")
    for machine in (web, workers):
        said = machine.manage("verify_audit")
        assert "The audit log is intact" in said
        assert (path in said) is (machine is web)
        assert not amount(1, 0) or "are those of its database" in machine.manage("keys")
    if amount(1, 0):
        third_machine(machines, database, web, workers)
    shown = sentence.removeprefix("CommandError: ")[:100]
    third = amount(1, 0) and "; a third took over publishing, ten of ten pages on two web machines kept the session"
    figure(
        f"two machines with their own keys: refused ({shown}…); with the keys copied both work and verify_audit "
        f"is clean on each{third or ''}"
    )


def third_machine(machines, database, web, workers):
    """One more takes over what the second published; and a second web machine knows the sessions of the first."""
    again = machines("wrk2")
    for name in keys_in(workers.data):
        shutil.copy(workers.data / name, again.data / name)
    again.up("workers")
    until(lambda: "volmig is read-only" in again.log("workers"))
    again.manage("adopt", "--join", "--as", "ada", typed="join\n")
    workers.stop()
    with psycopg.connect(database) as connection:  # as if two minutes had gone by
        connection.execute("UPDATE record_publisher SET until = until - interval '2 minutes'")
    query = "SELECT path FROM record_publisher WHERE seq > 0"
    until(lambda: rows(database, query) == [(str(again.data / "audit_heads"),)])
    for machine in (web, workers, again):
        assert "The audit log is intact" in machine.manage("verify_audit")
    assert "VOLMIG_ADMIN_USER=ada is ignored" not in web.log("web")
    web.stop()
    other = machines("web2")
    for name in keys_in(web.data):
        shutil.copy(web.data / name, other.data / name)
    ports = [free_port(), free_port()]
    for machine, port in zip((web, other), ports, strict=True):
        machine.up("web", "--bind", f"127.0.0.1:{port}")
    until(lambda: all(fetched(port, "/healthz") == 200 for port in ports))
    assert "VOLMIG_ADMIN_USER=ada is ignored: there are accounts already." in web.log("web")
    browser = logged_in(ports[0])
    for port in ports * 5:  # cookies are a host's, whatever its port
        with browser.open(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            assert answer.geturl() == f"http://127.0.0.1:{port}/", "no way back to the login"


@pytest.mark.parametrize("wrong", ["postgres://volmig@/volmik", "postgres://volmik@/volmig"])
def test_postgresql_says_in_these_words_that_waiting_does_not_help(database, wrong):
    with pytest.raises(psycopg.OperationalError) as error:
        psycopg.connect(wrong + database[database.index("?") :])
    assert is_wrong(error.value)
    with pytest.raises(psycopg.OperationalError) as error:
        psycopg.connect("postgres://volmig@/volmig?host=/nowhere")
    assert not is_wrong(error.value)


def test_a_part_that_starts_before_its_database_waits_for_it(machines, database, tmp_path):
    directory = database.partition("host=")[2]
    link = tmp_path / "socket"
    machine = machines("web2", database.replace(directory, str(link)).replace("/volmig?", "/postgres?"))
    process = machine.up("watcher")
    until(lambda: "up watcher: waiting for the database" in machine.log("watcher"))
    assert process.poll() is None
    link.symlink_to(directory)
    until(
        lambda: rows(database.replace("/volmig?", "/postgres?"), "SELECT 1 FROM jobs_lease WHERE name LIKE 'watcher %'")
    )
    said = machine.log("watcher")
    assert "up watcher: the database responds again" in said
    assert "Traceback" not in said
    assert said.count("waiting for the database") < 5
    link.unlink()
    with psycopg.connect(database) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    until(lambda: " watcher: waiting for the database" in machine.log("watcher").replace("up watcher", ""))
    link.symlink_to(directory)
    until(lambda: " watcher: the database responds again" in machine.log("watcher").replace("up watcher", ""))
    assert process.poll() is None
    assert "Traceback" not in machine.log("watcher")
