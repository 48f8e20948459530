"""Where tools run that parse what others wrote: no network, no other process, no capability, no file but those named.

A child of hostctl builds this for itself between fork and exec: namespaces of mounts, network, processes and IPC; a
root directory that holds nothing but the system's programs and the named files, each at its own path and read-only;
limits on CPU time, memory and written bytes; then an unprivileged user. A transient unit would need systemd 247 for
half of this, takes several times as long, and could not show exactly the file that is held open by a descriptor.
"""

import os
import resource
import signal
import stat
from typing import Any, List, NamedTuple, Optional, Tuple

UNSHARED = 0x00020000 | 0x08000000 | 0x20000000 | 0x40000000  # CLONE_NEWNS, _NEWIPC, _NEWPID, _NEWNET (linux/sched.h)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    *(1, 2, 4, 8),
    *(32, 4096, 16384, 1 << 18),  # linux/mount.h
)
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38  # linux/prctl.h
CAPABILITY_VERSION = 0x20080522  # linux/capability.h
ROOT = "/run"  # covered in the child's own namespace alone, so any directory that every host has will do
SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc/alternatives", "etc/ld.so.cache", "sys/dev", "sys/devices")
CHARACTERS = (("null", 3), ("zero", 5), ("urandom", 9))
NOT_BUILT = 126  # exit status where the cage could not be built; the tool was not started
NOBODY = (65534, 65534)
SECONDS, MEMORY, OPEN_FILES = 30, 1 << 30, 256

Bound = Tuple[str, bool]


class Shown(NamedTuple):
    """A file on a share that the tool may read, at its path: exactly this device and inode, or nothing is started."""

    path: str
    device: int
    inode: int
    user: Tuple[int, int]  # as whom the path is walked, where a server turns root away


class Cage:
    """A `become` for tools.Work: the tool reads `own` (block devices, and files in root's own directories) and `shown`,
    and writes `scratch`, as `user` (UID 0 keeps no capability either)."""

    def __init__(
        self,
        own: Tuple[str, ...] = (),
        shown: Tuple[Shown, ...] = (),
        scratch: str = "",
        user: Tuple[int, int] = NOBODY,
        seconds: int = SECONDS,
        memory: int = MEMORY,
        written: int = 0,
    ) -> None:
        import ctypes  # slow to load; loaded here, for between fork and exec nothing should be imported

        self.c, self.libc = ctypes, ctypes.CDLL(None, use_errno=True)
        self.own, self.shown, self.scratch, self.user = own, shown, scratch, user
        self.seconds, self.memory, self.written = seconds, memory, written

    def __call__(self) -> None:  # pragma: no cover - runs between fork and exec, where nothing is measured
        try:
            self._limit()
            if os.geteuid() == 0:  # anyone else has no privileges to drop
                self._unshare()
                self._build()
                self._give_up()
            self._prctl(PR_SET_NO_NEW_PRIVS, 1)
        except BaseException as error:
            os.write(2, b"the sandbox could not be built: %s\n" % str(error).encode("ascii", "replace"))
            os._exit(NOT_BUILT)

    def _limit(self) -> None:  # pragma: no cover
        for what, amount in (
            (resource.RLIMIT_CPU, self.seconds),
            (resource.RLIMIT_AS, self.memory),
            (resource.RLIMIT_FSIZE, self.written),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, OPEN_FILES),
        ):
            resource.setrlimit(what, (amount, amount))

    def _unshare(self) -> None:  # pragma: no cover
        """New namespaces. Only a child is in that of processes, and it ends with all its own: this process waits."""
        self._call("unshare", UNSHARED)
        child = os.fork()
        if child:
            self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.closerange(0, OPEN_FILES)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                os.kill(os.getpid(), os.WTERMSIG(status))
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else NOT_BUILT)

    def _build(self) -> None:  # pragma: no cover
        self._mount("none", "/", MS_REC | MS_PRIVATE)
        files = [(shown.path, self._found(shown)) for shown in self.shown]
        devices, writable = [], os.open(self.scratch, os.O_PATH | os.O_NOFOLLOW) if self.scratch else -1
        for path in self.own:
            fd = self._own(path)
            if fd is not None and stat.S_ISBLK(os.fstat(fd).st_mode):
                devices.append((path, os.fstat(fd).st_rdev))
            elif fd is not None:
                files.append((path, fd))
        os.umask(0)
        self._mount("tmpfs", ROOT, MS_NOSUID | MS_NOEXEC, "tmpfs", "size=1m,mode=755")
        self._system()
        for path, fd in files:
            self._bind("/proc/self/fd/%d" % fd, path, MS_RDONLY | MS_NODEV | MS_NOSUID | MS_NOEXEC)
        if self.scratch:
            self._bind("/proc/self/fd/%d" % writable, self.scratch, MS_NODEV | MS_NOSUID | MS_NOEXEC)
        for path, number in devices:
            self._node(path, stat.S_IFBLK | 0o400, number)
        self._mount("none", ROOT, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)
        os.chroot(ROOT)
        os.chdir("/")

    def _found(self, shown: Shown) -> int:  # pragma: no cover
        """The path once more, in the new namespace; whoever put something else there meanwhile is found out."""
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(shown.user[1])
        os.seteuid(shown.user[0])
        try:
            fd = os.open(shown.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        seen = os.fstat(fd)
        if (seen.st_dev, seen.st_ino) != (shown.device, shown.inode):
            raise OSError("%s was replaced after it was checked" % shown.path)
        return fd

    def _own(self, path: str) -> Optional[int]:  # pragma: no cover
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return None  # the tool says so itself
        if not stat.S_ISBLK(os.fstat(fd).st_mode) and not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("%s is neither a block device nor a regular file" % path)
        return fd

    def _system(self) -> None:  # pragma: no cover
        for name in SYSTEM:
            path = "/" + name
            if os.path.islink(path):
                os.symlink(os.readlink(path), ROOT + path)
            elif os.path.exists(path):
                self._bind(path, path, MS_RDONLY | MS_NOSUID | MS_NODEV)
        for name, minor in CHARACTERS:
            self._node("/dev/" + name, stat.S_IFCHR | 0o666, os.makedev(1, minor))

    def _bind(self, source: str, path: str, flags: int) -> None:  # pragma: no cover
        target = ROOT + path
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if stat.S_ISDIR(os.stat(source).st_mode):
            os.mkdir(target, 0o755)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        self._mount(source, target, MS_BIND)
        self._mount("none", target, MS_REMOUNT | MS_BIND | flags)

    def _node(self, path: str, mode: int, number: int) -> None:  # pragma: no cover
        os.makedirs(os.path.dirname(ROOT + path), 0o755, exist_ok=True)
        os.mknod(ROOT + path, mode, number)
        if stat.S_ISBLK(mode):
            os.chown(ROOT + path, *self.user)

    def _give_up(self) -> None:  # pragma: no cover
        for capability in range(64):
            if self.libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                break  # the last one that this kernel knows is gone
        os.setgroups([])
        os.setresgid(self.user[1], self.user[1], self.user[1])
        os.setresuid(self.user[0], self.user[0], self.user[0])
        header, none = (self.c.c_uint32 * 2)(CAPABILITY_VERSION, 0), (self.c.c_uint32 * 6)()
        self._call("capset", header, none)
        self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def _mount(
        self, source: str, target: str, flags: int, kind: str = "none", data: str = ""
    ) -> None:  # pragma: no cover
        words: List[Any] = [word.encode("utf-8", "surrogateescape") for word in (source, target, kind)]
        self._call("mount", *words, self.c.c_ulong(flags), data.encode() or None)

    def _prctl(self, option: int, value: int) -> None:  # pragma: no cover
        self._call("prctl", option, self.c.c_ulong(value), 0, 0, 0)

    def _call(self, name: str, *words: Any) -> None:  # pragma: no cover
        if getattr(self.libc, name)(*words) != 0:
            number = self.c.get_errno()
            raise OSError(number, "%s%r: %s" % (name, words, os.strerror(number)))
