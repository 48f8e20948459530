"""Whatever others may have written is opened in one place: a new direct open anywhere else in hostctl fails here."""

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts.remote import hostctl
from hosts.remote.hostctl import job_directory

OPENERS = {
    *("open", "os.open", "os.fdopen", "os.stat", "os.lstat", "os.listdir", "os.scandir", "os.walk", "os.readlink"),
    *("os.access", "os.statvfs", "os.mknod", "os.path.exists", "os.path.lexists", "os.path.isfile", "os.path.isdir"),
    *("os.path.islink", "os.path.realpath", "os.path.getsize", "io.open", "shutil.copy", "shutil.copyfile"),
    *("os.chmod", "os.chown", "os.lchown", "os.utime", "os.truncate", "shutil.chown"),  # follow a link, as root
}
HELPER = "untrusted"
PARSERS = ("'qemu-img'", "'blkid', '-p'", "'sfdisk', '-J'", "info_words", "_check_words", "(info,", "(check,")
KERNEL, ROOTS, TOP, NAMES = (
    "/proc, /sys or /dev: what the kernel says",
    "a directory that only root writes",
    "the top directory of a mount, not what lies in it",
    "whether a name is there, or lstat: nothing is opened, no link followed",
)
# Modules of hostctl's own installation, memory and policy; no path of theirs lies on a share.
OWN_FILES = {"install", "launcher", "ownership", "pack", "policy", "bootstrap", "store", "version"}
ELSEWHERE = {
    KERNEL: """transient_units.boot_id transient_units._running facts.hello facts._is_crypt lvm.counters
        lvm.openers lvm._has_open lvm._rdev lvm.first_line lvm.kernel_children lvm.Source.__init__ lvm.zero
        mounts.mounts mounts._answer mountpoints.unmount_patiently mountpoints._unlock openers.under
        openers._opened qemu_img.moved openers.of_file openers._read openers._runs question._ask
        question._began""",
    ROOTS: """facts._give facts.image_contents mountpoints.check_private leftovers._memories
        leftovers._listing.listed transient_units.listed exports._text nfs_server._record exports.recorded
        question.stuck commands._secure virsh.runs""",
    TOP: """facts._space.asked facts.share facts._squashes relay_filesystem.create mounts.is_own_filesystem
        mounts.is_stale mountpoints.make_mountpoint nfs_server._own""",
    NAMES: """relay_filesystem.remove leftovers._of_folder nfs_mount.unmount nfs_server.unexport
        qemu_img._check_part qemu_img.compare qemu_img.discard""",
    "the source of a domain's disk, as libvirt has it: only its device number is compared": "facts._is_device",
    "the cage itself: O_PATH, compared with the open file by device and inode": """sandbox.Cage._build
        sandbox.Cage._found sandbox.Cage._own sandbox.Cage._system sandbox.Cage._bind sandbox.Cage._node""",
}


def opening(tree: ast.AST, within: tuple[str, ...]) -> Iterator[str]:
    """The functions in which something is opened, listed or asked for by name."""
    for node in ast.iter_child_nodes(tree):
        inner = (*within, node.name) if isinstance(node, ast.FunctionDef | ast.ClassDef) else within
        if isinstance(node, ast.Call) and ast.unparse(node.func) in OPENERS:
            yield ".".join(inner)
        yield from opening(node, inner)


def test_nothing_is_opened_by_name_outside_the_helper_but_what_others_cannot_have_written():
    folder = Path(hostctl.__file__).parent
    paths = [path for path in folder.glob("*.py") if path.stem not in OWN_FILES]
    found = {each for path in paths for each in opening(ast.parse(path.read_text()), (path.stem,))}
    allowed = {each for names in ELSEWHERE.values() for each in names.split()}
    assert sorted(each for each in found - allowed if not each.startswith(HELPER + ".")) == [], (
        "open it with untrusted.py, or say above why nobody else can have written it"
    )
    assert sorted(allowed - found) == [], "these open nothing any more"


def test_tools_that_parse_what_guests_wrote_run_in_the_cage():
    folder, bare = Path(hostctl.__file__).parent, []
    for path in folder.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        asking = [ast.unparse(call) for call in calls if ast.unparse(call.func).endswith((".ask", ".must", ".do"))]
        bare += [text for text in asking if any(word in text for word in PARSERS) and "become=" not in text]
    assert bare == []


def test_a_link_put_in_place_of_a_directory_just_made_does_not_have_its_target_changed(tmp_path, monkeypatch):
    """What a rename at that instant by whoever may write on the share comes to; root would follow the link."""
    share, outside = tmp_path / "share", tmp_path / "outside"
    share.mkdir()
    outside.mkdir()
    outside.chmod(0o755)
    real = os.mkdir

    def raced(name, mode, dir_fd):
        real(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.symlink(outside, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", raced)
    fd = os.open(share, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
            job_directory._mkdir(".volmig", fd, 0o700)
    finally:
        os.close(fd)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
