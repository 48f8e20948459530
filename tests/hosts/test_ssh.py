"""The SSH transport against a real sshd."""

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import paramiko
import pytest

from hosts.remote import connections, hostctl, ssh
from hosts.remote.host import (
    FIELDS_SINCE,
    Address,
    Garbled,
    HostctlDiffers,
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    Request,
    Unreachable,
)
from hosts.remote.hostctl import pack
from tests.hosts.sshd import Sshd, keygen
from tests.rig import free_port

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("sshd", path="/usr/sbin:/usr/bin"), reason="needs openssh-server, and root"
)
HELLO = Request("hello")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


@pytest.fixture
def sshd(tmp_path):
    with Sshd(tmp_path / "sshd") as server:
        yield server


def test_an_installed_hostctl_gets_one_request_and_its_answer_comes_back(sshd):
    sshd.answer({"evidence": {"hostname": "src"}, "boot_id": "b"})
    with ssh.connect(sshd.address) as host:
        answer = host.call(Request("hello", {"a": 1}, job="j", number=3, step="s", attempt=2, fence=7))
    assert (answer.state, answer.evidence, answer.boot_id) == ("done", {"hostname": "src"}, "b")
    [request] = sshd.requests()
    assert request == {
        **{"verb": "hello", "args": {"a": 1}, "job": "j", "number": 3, "step": "s", "direction": "do"},
        **{"attempt": 2, "fence": 7, "stops": "", "seal": {}, "hash": hostctl.source_hash()},
        **{"incarnation": "", "session": "", "claim": 0, "after": ""},
    }


def test_a_request_to_an_older_hostctl_has_no_field_that_it_does_not_know(monkeypatch):
    monkeypatch.setitem(FIELDS_SINCE, "stops", 3)
    assert "stops" in Request("hello").document(3)
    assert "stops" not in Request("hello").document(2)


def test_every_field_of_a_request_that_protocol_1_did_not_know_says_since_when_it_is_known():
    first = {"verb", "args", "job", "number", "step", "direction", "attempt", "fence", "stops"}
    named = {field.name for field in dataclasses.fields(Request)} - first - {"known"}
    assert named == set(FIELDS_SINCE)
    assert set(Request("hello").document(1)) == first


@pytest.mark.parametrize("protocol", [{}, {"protocol": 2}])
def test_a_hostctl_from_before_protocol_2_mentions_none_and_is_understood(sshd, protocol):
    sshd.answer({"evidence": {"hostname": "src"}, **protocol})
    with ssh.connect(sshd.address) as host:
        assert host.call(HELLO).evidence == {"hostname": "src"}


@pytest.fixture(autouse=True)
def no_connection_is_left():
    yield
    connections.KEPT.forget()


def logins(sshd):
    """How many there were, by sshd's own log."""
    return (sshd.home / "log").read_text().count("Accepted publickey")


def test_two_calls_go_over_one_connection(sshd):
    with ssh.connect(sshd.address) as host:
        assert [host.call(HELLO).state for _ in range(2)] == ["done", "done"]
    assert logins(sshd) == 1


def test_small_packets_leave_at_once(sshd):
    """A call is several in a row: each would wait for the acknowledgement of the one before."""
    with ssh.connect(sshd.address) as host:
        sock = host.transport().sock
        assert sock.getsockopt(ssh.socket.IPPROTO_TCP, ssh.socket.TCP_NODELAY)


def test_the_next_one_who_enters_uses_the_connection_again(sshd):
    for _ in range(3):
        with ssh.connect(sshd.address) as host:
            assert host.call(HELLO).state == "done"
    assert (logins(sshd), len(sshd.requests())) == (1, 3)


def test_two_who_are_there_at_once_have_a_connection_each(sshd):
    with ssh.connect(sshd.address) as first, ssh.connect(sshd.address) as second:
        assert [each.call(HELLO).state for each in (first, second)] == ["done", "done"]
        assert first.connection is not second.connection


def test_a_kept_connection_whose_other_end_is_gone_is_replaced_unnoticed(sshd):
    with ssh.connect(sshd.address) as host:
        host.call(HELLO)
    sshd.freeze()  # it does not even say goodbye
    with ssh.connect(sshd.address) as host:
        assert host.is_kept
        assert host.call(HELLO).state == "done"
    assert logins(sshd) == 2
    assert len(sshd.requests()) == 2


def test_where_a_kept_connection_is_gone_and_no_login_succeeds_every_call_says_so(sshd, monkeypatch):
    with ssh.connect(sshd.address) as host:
        host.call(HELLO)
    sshd.freeze()
    with ssh.connect(sshd.address) as host:
        with monkeypatch.context() as cut:
            cut.setattr(ssh, "dial", lambda *_: ssh.socket.create_connection(("127.0.0.1", 1)))
            for _ in range(2):
                with pytest.raises(Unreachable, match="Tried to log in to"):
                    host.call(HELLO)
        assert host.call(HELLO).state == "done", "the link is back"


def test_a_connection_is_not_used_under_another_address(sshd):
    with ssh.connect(sshd.address) as host:
        host.call(HELLO)
    with pytest.raises(HostKeyUnknown):
        ssh.connect(dataclasses.replace(sshd.address, host_key="ssh-ed25519"))


@pytest.mark.parametrize(
    ("column", "seconds"),
    [
        pytest.param("idle_since", connections.IDLE_SECONDS, id="idle for too long"),
        pytest.param("began", connections.OLDEST_SECONDS, id="too old, as its key may have been revoked"),
    ],
)
def test_a_connection_is_kept_for_a_while_only(sshd, column, seconds):
    with ssh.connect(sshd.address) as host:
        host.call(HELLO)
    [kept] = connections.KEPT.idle[sshd.address]
    setattr(kept, column, getattr(kept, column) - seconds)
    assert connections.KEPT.expire() == 0
    assert kept.client.get_transport() is None


def test_a_connection_behind_a_bastion_is_kept_and_closed_with_it(sshd, tmp_path):
    with Sshd(tmp_path / "bastion", forced=False, user_key=sshd.user_key) as bastion:
        behind = dataclasses.replace(sshd.address, bastion=bastion.address)
        for _ in range(2):
            with ssh.connect(behind) as host:
                assert host.call(HELLO).state == "done"
        assert (logins(bastion), logins(sshd)) == (1, 1)
        connections.KEPT.forget()
        assert connections.KEPT.idle == {}


def test_of_many_connections_a_few_are_kept(sshd):
    hosts = [ssh.connect(sshd.address) for _ in range(4)]
    for host in hosts:
        host.close()
    assert len(connections.KEPT.idle[sshd.address]) == connections.MOST_OF_A_HOST


class Idle:
    """A connection that lives until it is closed."""

    def __init__(self):
        self.is_open = True

    def get_transport(self):
        return self

    def is_active(self):
        return self.is_open

    def close(self):
        self.is_open = False


def kept_of(addresses):
    """Keeps a connection for each, one after the other; which of them are still open."""
    kept, made = connections.Connections(), [Idle() for _ in addresses]
    kept.reaper = threading.current_thread()  # none is needed
    for number, (address, client) in enumerate(zip(addresses, made, strict=True)):
        kept.keep(address, connections.Connection(client))
        kept.idle[address][-1].idle_since -= len(addresses) - number
    assert sum(each.is_open for each in made) == sum(map(len, kept.idle.values()))
    return [each.is_open for each in made]


def test_of_too_many_connections_those_that_were_idle_for_longest_are_closed(monkeypatch):
    monkeypatch.setattr(connections, "MOST", 3)
    one, *others = (Address(f"cmp-{number}", 22, "volmig", KEY) for number in range(5))
    assert kept_of([one, *others]) == [False, False, True, True, True]
    assert kept_of([one, one, one]) == [False, True, True]


def test_one_that_followed_a_hypervisor_is_not_kept(sshd):
    sshd.behave("print('{\"beat\": 1}', flush=True); import time; time.sleep(30)")
    with ssh.connect(sshd.address) as host:
        next(host.watch())
    assert connections.KEPT.take(sshd.address) is None


def test_handshakes_are_paced():
    slept = []
    pace = connections.Pace(2, 10, sleep=slept.append)
    for _ in range(5):
        with pace.slot():
            pass
    assert sum(slept) == pytest.approx(0.1 + 0.2 + 0.3 + 0.4, abs=0.05)


def twenty_handshakes(pace, seconds):
    """Twenty threads at once, each with a handshake that takes so long; how many were under way as each began."""
    inside, most, lock = [], [], threading.Lock()

    def shake():
        with pace.slot():
            with lock:
                inside.append(1)
                most.append(len(inside))
            time.sleep(seconds)
            with lock:
                inside.pop()

    threads = [threading.Thread(target=shake) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


def test_no_more_handshakes_than_slots_are_under_way_at_a_time():
    pace = connections.Pace(2, 1e6)
    most = twenty_handshakes(pace, 0.01)
    assert (len(most), max(most), pace.under_way) == (20, 2, {})


def test_a_handshake_that_is_stuck_gives_its_slot_to_others():
    pace, entered = connections.Pace(1, 1e6, longest=0.1), threading.Event()

    def shake():
        with pace.slot():
            entered.set()

    with pace.slot():
        threading.Thread(target=shake).start()
        assert entered.wait(20), "while the first is still at it"


def test_handshakes_that_all_take_too_long_are_bounded_too():
    """As on a machine without processor time, where each more makes all of them slower."""
    pace = connections.Pace(1, 1e6, longest=0.001)
    most = twenty_handshakes(pace, 0.05)
    assert (len(most), pace.under_way) == (20, {})
    assert max(most) <= connections.WITH_STUCK


@pytest.mark.parametrize("is_behind", [False, True], ids=["reached directly", "behind a bastion"])
def test_hosts_that_take_connections_and_never_speak_keep_no_others_waiting(sshd, tmp_path, monkeypatch, is_behind):
    monkeypatch.setattr(ssh, "HANDSHAKES", connections.Pace(1, 1e6, longest=1000))
    silent, said = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)], []

    def enter(port):
        try:
            ssh.connect(dataclasses.replace(sshd.address, port=port, bastion=bastion.address if is_behind else None))
        except Unreachable as error:
            said.append(error)

    with Sshd(tmp_path / "bastion", forced=False, user_key=sshd.user_key) as bastion:
        threads = [threading.Thread(target=enter, args=(each.getsockname()[1],), daemon=True) for each in silent]
        for thread in threads:
            thread.start()
        taken = [each.accept()[0] for each in silent]  # all of them wait for a banner now
        with ssh.connect(sshd.address) as host:
            assert host.transport().is_active()
        assert all(thread.is_alive() for thread in threads), "they had not given up before"
        for each in (*taken, *silent):
            each.close()
        for thread in threads:
            thread.join(60)
    assert len(said) == 3


def test_a_host_that_never_speaks_is_named_as_that(sshd, monkeypatch):
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = dataclasses.replace(sshd.address, port=silent.getsockname()[1])
        with pytest.raises(Unreachable, match=r"it accepted the connection and sent nothing for 1 s"):
            ssh.connect(address)


def test_an_overloaded_host_is_not_reported_as_one_that_refused_the_login(sshd, monkeypatch):
    """It takes the connection, agrees on keys, and then has no time for the login."""
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 1)
    answer, over = threading.Event(), socket.create_server(("127.0.0.1", 0))

    class Busy(paramiko.ServerInterface):
        def get_allowed_auths(self, username):
            return "publickey"

        def check_auth_publickey(self, username, key):
            answer.wait(20)
            return paramiko.AUTH_FAILED

    def serve():
        transport = paramiko.Transport(over.accept()[0])
        transport.add_server_key(paramiko.Ed25519Key.from_private_key_file(str(sshd.home / "host_key")))
        transport.start_server(server=Busy())

    threading.Thread(target=serve, daemon=True).start()
    try:
        with pytest.raises(Unreachable, match=r"login got no response .* It may be overloaded"):
            ssh.connect(dataclasses.replace(sshd.address, port=over.getsockname()[1]))
    finally:
        answer.set()
        over.close()


def test_a_changed_host_key_is_refused_and_nothing_is_sent(sshd, tmp_path):
    other = Sshd(tmp_path / "other")
    address = dataclasses.replace(sshd.address, host_key=other.host_key)
    with pytest.raises(HostKeyChanged) as caught:
        ssh.connect(address)
    assert ssh.fingerprint(sshd.host_key) in str(caught.value)
    assert ssh.fingerprint(other.host_key) in str(caught.value)
    assert sshd.requests() == []


def test_a_host_key_of_another_type_is_refused(sshd, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(tmp_path / "rsa")], check=True)
    rsa = " ".join((tmp_path / "rsa.pub").read_text().split()[:2])
    with pytest.raises(HostKeyChanged):
        ssh.connect(dataclasses.replace(sshd.address, host_key=rsa))
    assert sshd.requests() == []


@pytest.mark.parametrize("key", ["", "ssh-ed25519", "ssh-ed25519 %%%", "nonsense AAAA"])
@pytest.mark.parametrize("behind", [False, True])
def test_without_a_usable_pinned_key_nobody_connects(sshd, monkeypatch, key, behind):
    dialled = []
    monkeypatch.setattr(ssh, "dial", lambda *to: dialled.append(to) or socket.create_connection(to))
    bastion = sshd.address if behind else None
    with pytest.raises(HostKeyUnknown):
        ssh.connect(dataclasses.replace(sshd.address, host_key=key, bastion=bastion))
    assert dialled == [], "neither it nor its bastion is asked for anything"


def test_the_offered_key_is_shown_as_ssh_keygen_shows_it(sshd):
    assert ssh.offered_key("127.0.0.1", sshd.port) == sshd.host_key
    listing = subprocess.run(
        ["ssh-keygen", "-lf", str(sshd.home / "host_key.pub")], capture_output=True, text=True, check=True
    )
    assert ssh.fingerprint(sshd.host_key) == listing.stdout.split()[1]


def test_a_key_that_is_not_authorised_is_refused_plainly(sshd, tmp_path):
    address = dataclasses.replace(sshd.address, key_file=str(keygen(tmp_path / "stranger")))
    with pytest.raises(HostError, match="login was refused") as caught:
        ssh.connect(address)
    assert not isinstance(caught.value, Unreachable)


def test_a_closed_port_is_unreachable():
    with pytest.raises(Unreachable):
        ssh.offered_key("127.0.0.1", free_port())


def test_keys_of_the_agent_open_the_door(sshd, tmp_path, monkeypatch):
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run(["ssh-add", "-q", str(sshd.user_key)], check=True, stderr=subprocess.DEVNULL)
        with ssh.connect(dataclasses.replace(sshd.address, key_file="")) as host:
            assert host.call(HELLO).state == "done"
    finally:
        agent.terminate()
        agent.wait()


def test_a_bastion_carries_the_connection_and_both_keys_are_pinned(sshd, tmp_path):
    with Sshd(tmp_path / "bastion", forced=False, user_key=sshd.user_key) as bastion:
        behind = dataclasses.replace(sshd.address, bastion=bastion.address)
        with ssh.connect(behind) as host:
            assert host.call(HELLO).state == "done"
        assert ssh.offered_key("127.0.0.1", sshd.port, bastion.address) == sshd.host_key
        for wrong in (
            dataclasses.replace(behind, host_key=bastion.host_key),
            dataclasses.replace(behind, bastion=dataclasses.replace(bastion.address, host_key=sshd.host_key)),
        ):
            with pytest.raises(HostKeyChanged):
                ssh.connect(wrong)
    assert len(sshd.requests()) == 1


def test_a_frozen_host_is_noticed_in_the_time_given(sshd):
    with ssh.connect(sshd.address) as host:
        sshd.freeze()
        begun = time.monotonic()
        with pytest.raises(Unreachable) as caught:
            host.call(HELLO, timeout=1.5)
        assert time.monotonic() - begun < 15  # not for ever: nobody is held up by a frozen peer
    assert caught.value.touched is False
    assert sshd.requests() == []


def test_an_answer_that_does_not_come_in_time_leaves_open_whether_something_was_touched(sshd):
    sshd.behave("import time; time.sleep(30)")
    with ssh.connect(sshd.address) as host, pytest.raises(Unreachable) as caught:
        host.call(HELLO, timeout=1.5)
    assert caught.value.touched is None


def test_a_connection_cut_in_the_middle_is_unreachable_even_after_a_whole_answer(sshd):
    sshd.behave("sys.stdout.write((home / 'answer').read_text()); sys.stdout.flush(); import time; time.sleep(30)")
    with ssh.connect(sshd.address) as host:
        cut = threading.Timer(1, host.connection.client.close)
        cut.start()
        with pytest.raises(Unreachable, match="cut"):
            host.call(HELLO, timeout=10)


def test_a_wordy_standard_error_does_not_block_the_answer(sshd):
    sshd.behave("sys.stderr.write('x' * 5_000_000); sys.stderr.flush()")
    sshd.answer({"evidence": {"text": "y" * 3_000_000}})
    with ssh.connect(sshd.address) as host:
        assert len(host.call(HELLO).evidence["text"]) == 3_000_000


def test_one_that_stays_silent_with_the_channel_open_is_given_up_too(sshd):
    sshd.behave("import time; time.sleep(30)")
    with ssh.connect(sshd.address) as host:
        channel = host.transport().open_session()
        channel.settimeout(0.3)
        channel.exec_command("hostctl")
        with pytest.raises(TimeoutError):
            ssh.Output().drain(channel)


def test_over_a_connection_that_was_closed_nothing_is_asked(sshd):
    host = ssh.connect(sshd.address)
    host.close()
    with pytest.raises(Unreachable, match="connection is closed") as caught:
        host.call(HELLO)
    assert caught.value.touched is False
    assert sshd.requests() == []


WRONG = {
    "a banner before it": lambda whole: b"Welcome to src\n" + whole,
    "something after it": lambda whole: whole + b"\nbye",
    "nothing": lambda whole: b"",
    "no object": lambda whole: b"[1]",
    "too deep": lambda whole: b"[" * 100_000,
    "not a number": lambda whole: whole.replace(b'"boot_id": ""', b'"boot_id": NaN'),
    "an unknown state": lambda whole: whole.replace(b'"done"', b'"fine"'),
    "a missing field": lambda whole: whole.replace(b'"unit"', b'"units"'),
    "a list of strings as commands": lambda whole: whole.replace(b'"commands": []', b'"commands": ["ls"]'),
    "more than the cap": lambda whole: whole.replace(b'"unit": ""', b'"unit": "' + b"x" * 5_000_000 + b'"'),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_an_answer_that_is_not_hostctls_is_garbled(sshd, change):
    sshd.answer(change((sshd.home / "answer").read_bytes()))
    with ssh.connect(sshd.address) as host, pytest.raises(Garbled):
        host.call(HELLO)


def test_a_hostctl_of_another_hash_is_refused(sshd):
    sshd.answer({"hash": "0123456789abcdef"})
    with ssh.connect(sshd.address) as host, pytest.raises(HostctlDiffers, match="0123456789abcdef"):
        host.call(HELLO)


OTHER = "0123456789abcdef"
REFUSED = {"state": "refused", "hash": OTHER, "evidence": {"versions": [OTHER, "f" * 16]}}


def test_another_version_is_named_with_all_that_are_there_and_did_nothing(sshd):
    sshd.answer(REFUSED)
    with ssh.connect(sshd.address) as host, pytest.raises(HostctlDiffers) as caught:
        host.call(HELLO)
    error = caught.value
    assert (error.has, error.needs, error.versions) == (OTHER, hostctl.source_hash(), (OTHER, "f" * 16))
    assert (error.touched, error.protocol) == (False, 1)
    assert "Install it as the hypervisor's page shows" in str(error)


def test_another_version_that_does_not_refuse_may_have_acted(sshd):
    sshd.answer(REFUSED | {"state": "done"})
    with ssh.connect(sshd.address) as host, pytest.raises(HostctlDiffers) as caught:
        host.call(HELLO)
    assert caught.value.touched is None


def test_a_hostctl_of_a_newer_volmig_says_which_protocols_there_are(sshd):
    sshd.answer(REFUSED | {"protocol": hostctl.PROTOCOL + 3})
    with ssh.connect(sshd.address) as host, pytest.raises(HostctlDiffers) as caught:
        host.call(HELLO)
    mine, newer = hostctl.PROTOCOL, hostctl.PROTOCOL + 3
    assert f"This volmig speaks protocol 1 to {mine}; that hostctl speaks {newer}" in str(caught.value)
    assert "it was installed by a newer volmig" in str(caught.value)


def test_a_migration_asks_for_the_version_that_it_began_with(sshd):
    sshd.answer({"hash": OTHER})
    address = dataclasses.replace(sshd.address, hostctl=OTHER, protocol=1)
    with ssh.connect(address) as host:
        assert host.call(HELLO).state == "done"
    [request] = sshd.requests()
    assert request["hash"] == OTHER
    assert not set(FIELDS_SINCE) & set(request)


def test_a_former_version_is_shipped_from_what_volmig_has_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "SHIPPED_DIRECTORY", str(tmp_path / "bin"))
    program = f"print(open({str(tmp_path / 'sshd' / 'answer')!r}).read())"
    with Sshd(tmp_path / "sshd", forced=False) as sshd:
        sshd.answer({"hash": OTHER})
        kept = dataclasses.replace(sshd.address, hostctl=OTHER, protocol=1)
        with ssh.connect(kept) as host, pytest.raises(HostctlDiffers, match="does not have the file of this version"):
            host.call(HELLO)
        with ssh.connect(dataclasses.replace(kept, archive=program.encode())) as host:
            assert host.call(HELLO).state == "done"
    assert [each.name for each in (tmp_path / "bin").iterdir()] == [f"hostctl-{OTHER}"]


def test_a_missing_hostctl_says_how_to_get_it(sshd):
    (sshd.home / "stand_in").unlink()
    with ssh.connect(sshd.address) as host, pytest.raises(HostctlDiffers, match="Install it"):
        host.call(HELLO)


def test_hostctl_is_sent_to_a_root_login_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "SHIPPED_DIRECTORY", str(tmp_path / "bin"))
    program = f"print(open({str(tmp_path / 'sshd' / 'answer')!r}).read())"
    monkeypatch.setattr(pack, "bundle", program.encode)
    with Sshd(tmp_path / "sshd", forced=False) as sshd, ssh.connect(sshd.address) as host:
        assert host.call(HELLO).state == "done"
        [shipped] = (tmp_path / "bin").iterdir()
        assert shipped.name == f"hostctl-{hostctl.source_hash()}"
        assert hashlib.sha256(shipped.read_bytes()).digest() == hashlib.sha256(pack.bundle()).digest()
        first = os.stat(shipped).st_ino
        assert host.call(HELLO).state == "done"
        assert os.stat(shipped).st_ino == first


def test_hostctl_that_cannot_be_put_there_says_where_to_look(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(ssh, "SHIPPED_DIRECTORY", str(tmp_path / "file/bin"))
    with (
        Sshd(tmp_path / "sshd", forced=False) as sshd,
        ssh.connect(sshd.address) as host,
        pytest.raises(HostctlDiffers, match="can be written by root"),
    ):
        host.call(HELLO)


def test_watch_yields_lines_and_says_when_the_host_goes_silent(sshd, monkeypatch):
    monkeypatch.setattr(ssh, "SILENCE_SECONDS", 1)
    beat = json.dumps({"beat": 1})
    sshd.behave(f"print('{beat}', flush=True); print('{beat}', flush=True); import time; time.sleep(30)")
    with ssh.connect(sshd.address) as host:
        stream = host.watch()
        assert [next(stream), next(stream)] == [{"beat": 1}, {"beat": 1}]
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            next(stream)
        assert time.monotonic() - begun < 10


def test_watch_says_when_the_host_is_frozen(sshd, monkeypatch):
    monkeypatch.setattr(ssh, "SILENCE_SECONDS", 1)
    sshd.behave("import time\nwhile True: print('{\"beat\": 1}', flush=True); time.sleep(0.1)")
    with ssh.connect(sshd.address) as host:
        stream = host.watch()
        assert next(stream) == {"beat": 1}
        sshd.freeze()
        with pytest.raises(Unreachable):
            list(stream)


def test_watch_says_when_it_was_ended_there(sshd):
    sshd.answer(b'{"beat": 1}\n')
    with ssh.connect(sshd.address) as host:
        stream = host.watch()
        assert next(stream) == {"beat": 1}
        with pytest.raises(Unreachable, match="the watch ended"):
            next(stream)


def test_a_wordy_standard_error_does_not_use_up_the_window_of_the_watch(sshd):
    beat = "print('{\"beat\": 1}', flush=True)"
    sshd.behave(f"for _ in range(5):\n    {beat}; sys.stderr.write('x' * 1_000_000); sys.stderr.flush()")
    sshd.answer(b'{"beat": 2}\n')
    with ssh.connect(sshd.address) as host:
        stream = host.watch()
        assert [next(stream)["beat"] for _ in range(6)] == [1, 1, 1, 1, 1, 2]


def test_watch_does_not_wait_for_the_end_of_a_line_that_is_too_long(sshd):
    sshd.behave("sys.stdout.write('x' * 200_000); sys.stdout.flush(); import time; time.sleep(30)")
    with ssh.connect(sshd.address) as host, pytest.raises(Garbled):
        next(host.watch())


WHOLE = {"state": "refused", "evidence": {}, "commands": [], "error": {"code": "no"}, "unit": "", "boot_id": "b"}
NO_LINES = ["hello", '{"beat": 1, "more": 2}', "[]", "x" * 100_000, json.dumps(WHOLE | {"hash": hostctl.source_hash()})]


@pytest.mark.parametrize("line", NO_LINES)
def test_watch_refuses_lines_that_are_not_its_own(sshd, line):
    sshd.answer(line.encode() + b"\n")
    with ssh.connect(sshd.address) as host, pytest.raises(Garbled):
        next(host.watch())


# Many at a time


@pytest.fixture
def behind(monkeypatch):
    """Connects to hypervisors behind one bastion, at which logins last until the test says; counts those under way."""

    class Bastion:
        under_way, most, held, free = 0, 0, threading.Semaphore(0), threading.Event()

        def enter(self, client, address, pinned, sock):
            if address.host == "bastion":
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                self.held.release()
                assert self.free.wait(20)
                self.under_way -= 1

        def connect(self, number):
            bastion = Address("bastion", 22, "volmig", KEY)
            return ssh.connect(Address(f"cmp-{number}", 22, "volmig", KEY, bastion=bastion))

    found = Bastion()
    monkeypatch.setattr(ssh, "enter", found.enter)
    monkeypatch.setattr(ssh, "dial", lambda *_: socket.socket())
    monkeypatch.setattr(ssh, "await_banner", lambda *_: None)
    monkeypatch.setattr(ssh.SSHHost, "tunnel", lambda *_: socket.socket())
    monkeypatch.setattr(ssh, "logins", {})
    return found


def test_a_host_that_took_long_to_answer_the_call_has_as_long_as_any_for_its_banner(monkeypatch):
    """As after packets that were lost, or while it copies."""
    now, (ours, theirs) = [100.0], socket.socketpair()

    def dial(host, port):
        now[0] += 1.9
        return ours

    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(ssh, "dial", dial)
    monkeypatch.setattr(ssh, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    with theirs, pytest.raises(Unreachable, match="sent nothing for 2 s"):
        ssh.connect(Address("slow", 22, "volmig", KEY))


def test_to_one_bastion_only_a_few_log_in_at_a_time(behind):
    with ThreadPoolExecutor(16) as pool:
        made = [pool.submit(behind.connect, number) for number in range(16)]
        for _ in range(ssh.LOGINS):
            assert behind.held.acquire(timeout=20)
        behind.free.set()
        assert [each.result(20).address.host for each in made] == [f"cmp-{number}" for number in range(16)]
    assert behind.most == ssh.LOGINS


def test_a_login_that_waits_too_long_for_its_turn_at_a_bastion_fails_and_the_turns_come_back(behind, monkeypatch):
    monkeypatch.setattr(ssh, "TURN_SECONDS", 0.05)
    with ThreadPoolExecutor(ssh.LOGINS) as pool:
        made = [pool.submit(behind.connect, number) for number in range(ssh.LOGINS)]
        for _ in range(ssh.LOGINS):
            assert behind.held.acquire(timeout=20)
        with pytest.raises(Unreachable, match="other logins have been under way there") as refused:
            behind.connect(99)
        assert refused.value.touched is False
        behind.free.set()
        assert len([each.result(20) for each in made]) == ssh.LOGINS
    assert behind.connect(100)
