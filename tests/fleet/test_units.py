"""packaging/systemd: units that systemd understands, that can do little, and that start programs that exist."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "packaging/systemd"
PARTS = {"volmig-web@.service": "web", "volmig-workers.service": "workers", "volmig-watcher.service": "watcher"}
CONFINED = (*PARTS, "volmig-migrate.service")
# What systemd-analyze security may find at most, of 100: 14 for the network and the sockets that they live by.
MOST_EXPOSED = {**dict.fromkeys(CONFINED, 15), "volmig-backup.service": 25}
STARTS = {"/opt/volmig/.venv/bin/python", "/bin/sh"}

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd on this machine")


@pytest.fixture
def installed(tmp_path):
    """A root directory with these units, systemd's own, and an executable wherever one of ours starts one."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for each in UNITS.iterdir():
        if each.suffix in (".service", ".target", ".timer"):
            shutil.copy(each, units)
    shutil.copytree("/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    for each in STARTS:
        program = tmp_path / each.removeprefix("/")
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", program)
    return tmp_path


def verified(installed):
    """What systemd-analyze verify says; nothing when all is well, whatever it ends with."""
    units = [each.name.replace("@.", "@8001.") for each in (installed / "etc/systemd/system").iterdir()]
    command = ["systemd-analyze", "verify", "--man=no", f"--root={installed}"]
    places = [str(installed / "etc/systemd/system" / name) for name in units]
    done = subprocess.run([*command, *places], capture_output=True, text=True)
    return done.stdout + done.stderr + "!" * done.returncode


def test_systemd_understands_every_line(installed):
    assert verified(installed) == ""


def test_a_line_that_systemd_does_not_understand_is_found(installed):
    unit = installed / "etc/systemd/system/volmig-workers.service"
    unit.write_text(unit.read_text().replace("ProtectClock=", "ProtectClok="))
    assert "ProtectClok" in verified(installed)


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_a_unit_can_do_little(name):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED[name]}"]
    done = subprocess.run([*command, str(UNITS / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def lines(name):
    """A unit's settings as pairs, in their order; those that are repeated are there more than once."""
    text = (UNITS / name).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in text if "=" in line and not line.startswith("#")]


def test_all_units_are_confined_alike():
    def confinement(name):
        settings = lines(name)
        return settings[settings.index(("NoNewPrivileges", "yes")) :][: -1 if name in PARTS else None]

    first, *others = map(confinement, CONFINED)
    assert len(first) > 25
    assert all(each == first for each in others)


@pytest.mark.parametrize(("name", "part"), PARTS.items())
def test_a_part_gets_the_keys_of_its_kind_and_no_others(name, part):
    from volmig.data_dir import OWNERS

    settings = lines(name)
    loaded = {value.split(":")[0] for key, value in settings if key == "LoadCredential"}
    kind = "web" if part == "web" else "worker"
    assert loaded == {key for key, owner in OWNERS.items() if owner == kind}
    keys = f"VOLMIG_KEYS_{kind.upper()}=%d VOLMIG_KEYS_KEPT=/etc/volmig/keys"
    assert ("Environment", f"VOLMIG_PART={part} {keys}") in settings
    assert ("User", f"volmig-{kind}") in settings


def test_users_and_directories_are_made_as_the_units_need_them(tmp_path):
    (tmp_path / "etc").mkdir()
    for program, file in (("systemd-sysusers", "volmig.sysusers"), ("systemd-tmpfiles", "volmig.tmpfiles")):
        create = ["--create"] if program == "systemd-tmpfiles" else []
        command = [program, f"--root={tmp_path}", *create, str(UNITS / file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    [group] = [line.split(":")[2] for line in (tmp_path / "etc/group").read_text().splitlines() if "volmig:" in line]
    assert {user[0]: user[3] for user in users} == {"volmig-web": group, "volmig-worker": group}
    shared = (tmp_path / "var/lib/volmig-shared").stat()
    assert (shared.st_mode & 0o7777, shared.st_uid, shared.st_gid) == (0o2770, 0, int(group))
    keys = (tmp_path / "etc/volmig/keys").stat()
    assert (keys.st_mode & 0o7777, keys.st_uid) == (0o700, 0)


def test_variables_of_the_settings_file_are_known():
    from volmig import environment

    parser = configparser.ConfigParser()
    parser.optionxform = str
    parser.read_string("[all]\n" + (UNITS / "volmig.env").read_text())
    names = {name.removeprefix("VOLMIG_") for name in parser["all"]}
    assert {"DB", "DATA", "STATIC"} <= names
    assert names <= environment.READ
