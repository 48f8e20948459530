"""Several versions lie side by side, a request picks one, and an install takes away none that a migration needs."""

import contextlib
import io
import json
import os
import subprocess
import sys
import uuid
import zipfile

import pytest

from hosts.remote.hostctl import bootstrap, install, launcher, source_hash
from tests.trust import versions

from .test_request import counted, send

__all__ = ["counted"]  # a fixture
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root installs hostctl")
JOB = str(uuid.uuid4())


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    return versions.rebuilt(tmp_path_factory.mktemp("sources"))


class Place:
    """A hypervisor's /usr/local/libexec and /var/lib/volmig, elsewhere."""

    def __init__(self, root):
        self.program, self.state, self.carried = root / "libexec/volmig-hostctl", root / "state", root / "carried"
        self.directory = root / "libexec/volmig-hostctl.d"
        self.program.parent.mkdir(mode=0o755)
        root.chmod(0o755)

    def install(self, version):
        """As `python3 -I hostctl install` does, but to this place; this tree's version in this process."""
        self.carried.write_bytes(version.archive)
        places = [str(self.carried), str(self.program), str(self.state)]
        if version.hash == source_hash():
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert install.main(*places) == 0
            return said.getvalue()
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); from hostctl import install; "
            "sys.exit(install.main(sys.argv[1], sys.argv[2], sys.argv[3]))"
        )
        words = [sys.executable, "-I", "-c", code, *places]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def install_former(self, version):
        """As versions before protocol 2 were installed."""
        self.program.write_bytes(version.archive)
        self.program.chmod(0o755)

    def ask(self, request, *words):
        """What sshd's forced command answers."""
        done = subprocess.run([self.program, *words], input=request, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def hello(self, digest=""):
        return self.ask(json.dumps({"verb": "status", "job": JOB, "hash": digest}))

    def versions(self):
        return sorted(path.name.removeprefix("hostctl-") for path in self.directory.glob("hostctl-*"))

    def began_here(self, version, job=JOB):
        folder = self.state / job
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"stage-do-{len(list(folder.iterdir())) + 1}.request.json").write_text(
            json.dumps({"verb": "stage", "hash": version.hash})
        )


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_request_is_handed_to_the_version_that_it_names_and_else_to_the_current_one(place, another):
    today = versions.current()
    for version in (another, today):
        place.install(version)
        assert place.hello()["hash"] == version.hash
    assert place.hello(another.hash)["state"] == "done"
    assert place.hello(another.hash)["hash"] == another.hash
    assert place.hello(today.hash)["hash"] == today.hash
    hello = place.ask(json.dumps({"verb": "hello"}))
    assert hello["evidence"]["versions"] == sorted([another.hash, today.hash])


def test_the_version_of_the_release_before_goes_on_beside_the_new_one(place):
    former, today = versions.former(), versions.current()
    place.install_former(former)
    assert place.hello(former.hash)["hash"] == former.hash
    assert f"hostctl {former.hash} stays: it was the current version before" in place.install(today)
    answer = place.hello(former.hash)
    assert (answer["state"], answer["hash"], "protocol" in answer) == ("done", former.hash, False)
    assert place.hello()["hash"] == today.hash


def test_who_asks_for_a_version_that_is_not_there_is_told_which_are(place):
    place.install(versions.current())
    refused = place.hello("f" * 16)
    assert (refused["state"], refused["error"]["code"]) == ("refused", "hostctl-differs")
    assert refused["evidence"]["versions"] == [versions.current().hash]


@pytest.mark.parametrize(
    "request_", ["", "{", "[]", '{"hash": 5}', '{"hash": "../../x"}', '{"hash": "' + "f" * 17 + '"}']
)
def test_what_is_no_request_reaches_the_current_version_as_it_came(place, request_):
    place.install(versions.current())
    answer = place.ask(request_)
    assert (answer["error"]["code"], answer["hash"]) == ("bad-request", versions.current().hash)


def test_a_large_request_reaches_its_version_whole_and_one_too_large_is_refused(place):
    place.install(versions.current())
    large = {"verb": "reach", "args": {"targets": []}, "job": JOB, "step": "x" * 300_000}
    assert "step" in place.ask(json.dumps(large))["error"]["found"]
    assert "more than 1 MiB" in place.ask("x" * ((1 << 20) + 9))["error"]["found"]


@pytest.mark.parametrize("spoil", ["file", "owner", "directory", "link", "current"])
def test_what_others_than_root_could_have_written_is_not_run(place, another, spoil, tmp_path):
    place.install(another)
    place.install(versions.current())
    file = place.directory / f"hostctl-{another.hash}"
    if spoil == "file":
        file.chmod(0o775)
    elif spoil == "owner":
        os.chown(file, 65534, 65534)
    elif spoil == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif spoil == "current":
        (place.directory / "current").unlink()
        (place.directory / "current").symlink_to("../../elsewhere")
        assert subprocess.run([place.program], input=b"{}", capture_output=True).returncode == 127
        return
    else:
        place.directory.chmod(0o777)
        done = subprocess.run([place.program], input=b"{}", capture_output=True)
        assert (done.returncode, done.stdout) == (127, b"")
        return
    assert place.hello(another.hash)["error"]["code"] == "hostctl-differs"


def test_an_install_removes_only_what_no_migration_on_this_host_needs(place, another):
    former, today = versions.former(), versions.current()
    place.install_former(former)
    place.began_here(former)
    place.install(another)
    assert f"hostctl {former.hash} stays: a migration on this host began with it" in place.install(today)
    assert place.versions() == sorted([former.hash, another.hash, today.hash])
    (place.state / JOB / "stage-do-1.request.json").unlink()
    told = place.install(today)
    assert place.versions() == sorted([today.hash])
    assert f"hostctl {former.hash} was removed" in told


def test_what_is_installed_is_roots_whatever_the_umask_and_leaves_nothing_half_done(place):
    mask = os.umask(0)
    try:
        place.install(versions.current())
    finally:
        os.umask(mask)
    for path in (place.program, place.directory, place.directory / f"hostctl-{versions.current().hash}"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o755)
    assert not [name for name in os.listdir(place.directory) if "part" in name]
    assert place.install(versions.current()), "installing it again changes nothing"
    assert place.versions() == [versions.current().hash]


def test_by_hand_a_job_is_looked_at_with_the_version_that_it_ran_with(monkeypatch, place):
    monkeypatch.setattr(launcher, "STATE", str(place.state))
    assert launcher.of_job(JOB) == ""
    assert launcher.of_job("../..") == ""
    place.began_here(versions.former())
    assert launcher.of_job(JOB) == versions.former().hash


@pytest.fixture
def with_policy(monkeypatch, place, tmp_path):
    """The hypervisor has a policy, and the program is looked at in this process."""
    (tmp_path / "hostctl.json").write_text("{}")
    monkeypatch.setattr(launcher, "STATE", str(place.state))
    monkeypatch.setattr(launcher, "POLICY", str(tmp_path / "hostctl.json"))
    place.install_former(versions.former())
    place.install(versions.current())
    return lambda version: str(place.directory / f"hostctl-{version.hash}")


def test_a_policy_is_not_got_around_by_the_name_of_a_version_that_knows_none(with_policy, place):
    former, today = versions.former(), versions.current()
    request = {"hash": former.hash, "job": JOB}
    assert launcher.may_run(with_policy(today), {"hash": today.hash})
    assert not launcher.may_run(with_policy(former), {"hash": former.hash})
    assert not launcher.may_run(with_policy(former), request)
    place.began_here(former)
    assert launcher.may_run(with_policy(former), request), "a migration that began with it here goes on"
    assert not launcher.may_run(with_policy(former), request | {"job": str(uuid.uuid4())})


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("named", ["former", "today", "none"])
def test_where_there_is_a_policy_no_request_makes_a_migration_one_of_a_version_that_knows_none(
    with_policy, monkeypatch, desk, named
):
    """Else whoever has the key would begin one of their own, and do with it every verb of that version, unsealed."""
    former, today = versions.former(), versions.current()
    monkeypatch.setattr(launcher, "STATE", desk.state)
    job, digest = str(uuid.uuid4()), {"former": former.hash, "today": today.hash, "none": ""}[named]
    request = {"hash": digest, "job": job}
    assert not launcher.may_run(with_policy(former), request | {"hash": former.hash})
    # So the current version hears it; what that one keeps is what the next request for this job is judged by.
    answer = send(desk, "lv_create", job=job, step="a", hash=digest)
    assert (answer["state"] == "done") is (named != "former")
    assert launcher.of_job(job) in ("", today.hash)
    assert not launcher.may_run(with_policy(former), request | {"hash": former.hash})


def test_without_a_policy_every_version_that_is_installed_runs(with_policy, monkeypatch):
    monkeypatch.setattr(launcher, "POLICY", "/nowhere")
    assert launcher.may_run(with_policy(versions.former()), {"hash": versions.former().hash})


@pytest.mark.parametrize("why", ["no archive", "not root"])
def test_only_the_file_itself_can_be_installed_and_only_by_root(place, monkeypatch, capsys, why):
    place.carried.write_bytes(versions.current().archive)
    if why == "not root":
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    archive = str(place.carried) if why == "not root" else __file__
    assert install.main(archive, str(place.program), str(place.state)) == 2
    assert "run the file itself, as root" in capsys.readouterr().err
    assert not place.program.exists()
    assert not place.directory.exists()


def test_nothing_is_installed_where_anyone_but_root_owns_the_directory_of_versions(place, capsys):
    place.carried.write_bytes(versions.current().archive)
    place.directory.mkdir()
    os.chown(place.directory, 65534, 65534)
    assert install.main(str(place.carried), str(place.program), str(place.state)) == 2
    assert f"{place.directory} is not root's alone" in capsys.readouterr().err
    assert (place.program.exists(), place.versions()) == (False, [])


def test_a_request_that_cannot_be_read_neither_keeps_a_version_nor_stops_an_install(place):
    former = versions.former()
    place.install_former(former)
    place.began_here(former)
    [kept] = (place.state / JOB).iterdir()
    for damaged in (b"{", b"[]", b"\xff", b"{}"):
        kept.write_bytes(damaged)
        assert install.needed_versions(str(place.state)) == set()
    (place.state / JOB / "lock").touch()
    (place.state / "owner.json").write_text("{}")
    (place.state / ("x" * 36)).touch()
    assert f"hostctl {versions.current().hash} is installed" in place.install(versions.current())


def test_an_archive_of_something_else_in_the_programs_place_is_replaced_and_not_kept(place):
    with zipfile.ZipFile(place.program, "w") as packed:
        packed.writestr("__main__.py", "print('another program')")
    place.install(versions.current())
    assert place.versions() == [versions.current().hash]
    assert place.program.read_bytes() == install._launcher()


def test_an_install_that_was_cut_off_between_two_renames_is_repeated_whole(place):
    place.directory.mkdir()
    (place.directory / "current.part").symlink_to("hostctl-nowhere")
    place.install(versions.current())
    assert os.readlink(place.directory / "current") == f"hostctl-{versions.current().hash}"
    assert not [name for name in os.listdir(place.directory) if "part" in name]


def test_an_archive_without_the_launcher_installs_no_program(place, monkeypatch):
    place.carried.write_bytes(versions.current().archive)
    monkeypatch.setattr(install.pkgutil, "get_data", lambda package, name: None)
    with pytest.raises(FileNotFoundError, match=r"launcher\.py is missing"):
        install.main(str(place.carried), str(place.program), str(place.state))
    assert not place.program.exists()


@pytest.mark.parametrize("why", ["archive", "job", ""])
def test_what_another_version_unpacked_stays_while_something_needs_it(place, monkeypatch, why):
    monkeypatch.setattr(bootstrap, "STATE", str(place.state))
    beside, digest = place.program.parent, versions.former().hash
    (beside / f".hostctl-{digest}").mkdir()
    os.utime(beside / f".hostctl-{digest}", (0, 0))
    if why == "archive":
        (beside / f"hostctl-{digest}").touch()
    elif why == "job":
        place.began_here(versions.former())
    assert len(bootstrap.others(str(beside / ".hostctl-new"))) == (0 if why else 1)
