"""The tools of a hypervisor, over a machine of tests/machines.py: they act on it, and refuse and say what real ones do.

What they say is held against the real ones by tests/contract.py.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from hosts.remote.hostctl.commands import Output
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.hostctl.qcow2 import Header
from tests.hostctl.conftest import qcow2

HEAD = 65536  # bytes of an image before its data: there the header lies alone
MARK = b"ext4 "  # how the first block of a volume begins on which a filesystem was made
MAJOR = 253
NOT_THERE = "No such file or directory"

Words = Sequence[str]


class Says(Exception):  # noqa: N818 - what a tool says is no fault of its own
    """A tool ends with this exit status and this on standard error."""

    def __init__(self, status: int, err: str) -> None:
        super().__init__(err)
        self.output = Output(status, "", err + "\n")


def run(machine, argv: Words) -> Output:
    """What a tool of this machine answers; FileNotFoundError for what it does not have."""
    try:
        return Output(0, TOOLS[Path(argv[0]).name](machine, list(argv[1:])) or "")
    except Says as said:
        return said.output


def after(words: Words, option: str, default: str = "") -> str:
    return words[words.index(option) + 1] if option in words else default


def every(words: Words, option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


# LVM


def lvs(machine, words: Words) -> str:
    rows = [row_of(machine, each) for each in machine.volumes.values()]
    return report("lv", [row for row in rows if is_selected(row, after(words, "-S"))], after(words, "-o"))


def vgs(machine, words: Words) -> str:
    return report("vg", [group_row(machine)] if machine.vg else [], after(words, "-o"))


def report(kind: str, rows: list[dict[str, str]], fields: str) -> str:
    return json.dumps({"report": [{kind: [{name: row[name] for name in fields.split(",")} for row in rows]}]})


def group_row(machine) -> dict[str, str]:
    return {
        **{"vg_name": machine.vg, "vg_uuid": f"group-of-{machine.name}", "vg_size": str(machine.vg_size)},
        **{"vg_free": str(machine.free), "vg_extent_size": str(machine.extent)},
        **{"vg_attr": "wz--n-", "vg_missing_pv_count": "0"},
    }


def row_of(machine, volume) -> dict[str, str]:
    busy = machine.is_open(volume)
    letters = f"-{'w' if volume.permission == 'writeable' else 'r'}i-{'a' if volume.active else '-'}"
    return {
        **{"vg_name": machine.vg, "lv_name": volume.name, "lv_uuid": volume.uuid, "lv_size": str(volume.size)},
        **{"lv_attr": f"{letters}{'o' if busy else '-'}----", "lv_tags": ",".join(sorted(volume.tags))},
        **{"lv_device_open": "open" if busy else "", "lv_permissions": volume.permission},
        **{"lv_kernel_major": str(MAJOR if volume.active else -1)},
        **{"lv_kernel_minor": str(volume.minor if volume.active else -1)},
        **{"lv_active": "active" if volume.active else "", "lv_health_status": "", "pool_lv": "", "origin": ""},
    }


def is_selected(row: dict[str, str], select: str) -> bool:
    return any(all(holds(row, term) for term in one.split(" && ")) for one in select.split(" || ")) if select else True


def holds(row: dict[str, str], term: str) -> bool:
    field, how, braced, value = re.fullmatch(r'(\w+)(=~|=)(\{?)"([^"]*)"\}?', term).groups()
    if braced:
        return value in row[field].split(",")
    return bool(re.search(value, row[field])) if how == "=~" else row[field] == value


def lvcreate(machine, words: Words) -> str:
    name, group = after(words, "-n"), words[-1]
    extents = -(-int(after(words, "-L").rstrip("b")) // machine.extent)
    if group != machine.vg:
        raise Says(5, f'  Volume group "{group}" not found\n  Cannot process volume group {group}')
    if name in machine.volumes:
        raise Says(5, f'  Logical Volume "{name}" already exists in volume group "{group}"')
    if extents * machine.extent > machine.free:
        left = machine.free // machine.extent
        raise Says(5, f'  Volume group "{group}" has insufficient free space ({left} extents): {extents} required.')
    machine.add_volume(name, extents * machine.extent, tags=set(every(words, "--addtag")))
    return f'  Logical volume "{name}" created.\n'


def lvremove(machine, words: Words) -> str:
    if words[-1] != machine.vg:
        raise Says(5, f'  Volume group "{words[-1]}" not found\n  Cannot process volume group {words[-1]}')
    chosen = [each for each in machine.volumes.values() if is_selected(row_of(machine, each), after(words, "-S"))]
    for volume in chosen:
        check_unused(machine, volume)
        machine.drop_volume(volume)
    return "".join(f'  Logical volume "{each.name}" successfully removed.\n' for each in chosen)


def check_unused(machine, volume) -> None:
    if machine.is_mounted(volume):
        raise Says(5, f"  Logical volume {machine.vg}/{volume.name} contains a filesystem in use.")
    if machine.is_open(volume):
        raise Says(5, f"  Logical volume {machine.vg}/{volume.name} in use.")


def lvchange(machine, words: Words) -> str:
    volume = machine.volumes.get(words[-1].removeprefix(f"{machine.vg}/"))
    if volume is None:
        raise Says(5, f'  Failed to find logical volume "{words[-1]}"')
    if "-an" in words and volume.active:
        check_unused(machine, volume)
    permission = {"-pr": "read-only", "-prw": "writeable"}.get(words[0], "")
    if permission == volume.permission:
        told = "read only" if permission == "read-only" else "writable"
        raise Says(5, f'  Logical volume "{words[-1]}" is already {told}.')
    volume.permission = permission or volume.permission
    volume.active = {"-an": False, "-ay": True}.get(words[0], volume.active)
    volume.tags |= set(every(words, "--addtag"))
    volume.tags -= set(every(words, "--deltag"))
    return f"  Logical volume {words[-1]} changed.\n"


# Filesystems


def blkid(machine, words: Words) -> str:
    try:
        head = head_of(machine.real(words[-1])) if "-O" not in words else b""
    except FileNotFoundError:
        raise Says(2, f"error: {words[-1]}: {NOT_THERE}") from None
    if head.startswith(MARK):
        identity, label = (part.decode() for part in head.split()[1:3])
        if after(words, "-o") == "udev":
            names = f"ID_FS_LABEL={label}\nID_FS_LABEL_ENC={label}\nID_FS_UUID={identity}\nID_FS_UUID_ENC={identity}\n"
            return f"{names}ID_FS_VERSION=1.0\nID_FS_TYPE=ext4\nID_FS_USAGE=filesystem\n"
        return f"DEVNAME={words[-1]}\nLABEL={label}\nUUID={identity}\nVERSION=1.0\nTYPE=ext4\n"
    if head[:4] == b"QFI\xfb":
        return "ID_FS_TYPE=qcow2\n" if after(words, "-o") == "udev" else f"DEVNAME={words[-1]}\nTYPE=qcow2\n"
    raise Says(2, "")


def mkfs_ext4(machine, words: Words) -> None:
    volume = machine.volume_at(words[-1])
    if volume is None:
        raise Says(1, f"The file {words[-1]} does not exist and no size was specified.")
    if machine.is_mounted(volume):
        raise Says(1, f"{words[-1]} is mounted; will not make a filesystem here!")
    if machine.is_open(volume):
        raise Says(1, f"{words[-1]} is apparently in use by the system; will not make a filesystem here!")
    if volume.permission != "writeable":
        raise Says(1, f"mkfs.ext4: Operation not permitted while trying to open {words[-1]}")
    head = b"%s%s %s \0" % (MARK, after(words, "-U").encode(), after(words, "-L").encode())
    machine.write(volume, head)


def mount(machine, words: Words) -> None:
    what, where = words[-2:]
    if not machine.is_directory(where):
        raise Says(32, f"mount: {where}: mount point does not exist.")
    kind, options = after(words, "-t"), after(words, "-o")
    row = nfs_row(machine, what, where, options) if kind == "nfs" else ext4_row(machine, what, where, options)
    if any(each[:3] == row[:3] for each in machine.mounted):
        raise Says(32, f"mount: {where}: {what} already mounted on {where}.")
    machine.mounted.append(row)


def ext4_row(machine, what: str, where: str, options: str) -> Mount:
    volume = machine.volume_at(what)
    if volume is None:
        raise Says(32, f"mount: {where}: special device {what} does not exist.")
    if not head_of(volume.file).startswith(MARK):
        raise Says(32, f"mount: {where}: wrong fs type, bad option, bad superblock on {what}, missing codepage.")
    return Mount(f"{MAJOR}:{volume.minor}", "/", where, "ext4", machine.mapper(volume), "rw," + options)


def nfs_row(machine, what: str, where: str, options: str) -> Mount:
    address, _, path = what.partition(":")
    if not machine.site.serves(address, path, machine):
        raise Says(32, f"mount.nfs: access denied by server while mounting {what}")
    return Mount("0:50", "/", where, "nfs", what, "rw," + options)


def umount(machine, words: Words) -> None:
    where = words[-1]
    tops = [each for each in machine.mounted if each.target == where]
    if not tops:
        raise Says(32, f"umount: {where}: not mounted." if machine.is_directory(where) else no_mount_point(where))
    if any(f"{each.directory}/".startswith(f"{where}/") for each in machine.processes.values()):
        raise Says(32, f"umount: {where}: target is busy.")
    machine.mounted.remove(tops[-1])


def no_mount_point(where: str) -> str:
    return f"umount: {where}: no mount point specified."


def exportfs(machine, words: Words) -> str:
    if words[0] == "-s":
        return "".join(f"{path}  {client}({options})\n" for path, (client, options) in machine.etab.items())
    if words[0] == "-f":
        return ""
    if words[0] == "-r":
        lines = [path.read_text().split() for path in (machine.root / "etc/exports.d").glob("[!.]*.exports")]
        listed = {path: rest.rstrip(")").partition("(") for path, rest in lines}
        machine.etab = {
            path: (client, shown_options(options.split(","))) for path, (client, _, options) in listed.items()
        }
        return ""
    client, _, path = words[-1].partition(":")
    if words[0] == "-u":
        if machine.exports.get(path) != client:
            raise Says(1, f"exportfs: Could not find '{words[-1]}' to unexport.")
        del machine.etab[path]
        return ""
    if not machine.is_directory(path):
        raise Says(1, f"exportfs: Failed to stat {path}: {NOT_THERE}")
    machine.etab[path] = client, shown_options(after(words, "-o").split(","))
    return ""


def shown_options(given: list[str]) -> str:
    """As the kernel has them, in the order in which exportfs shows them."""
    valued = {word.partition("=")[0]: word for word in given if "=" in word}
    numbers = [valued[name] for name in ("anonuid", "anongid") if name in valued]
    mountpoint = ["mountpoint"] if "mp" in given else []
    squash = ["root_squash", *(word for word in given if word == "all_squash")]
    first = ["sync", "wdelay", "hide", "no_subtree_check", valued["fsid"]]
    return ",".join([*first, *mountpoint, *numbers, "sec=sys", "rw", "secure", *squash])


# systemd


def systemctl(machine, words: Words) -> str:
    verb, name = words[0], words[-1].removesuffix(".service")
    if verb == "show":
        return show(machine, name, every(words, "-p"))
    if verb == "list-units":
        return "".join(f"{each}.service loaded active running volmig\n" for each in sorted(machine.units))
    if verb == "reset-failed":
        return ""
    if name in machine.units and verb == "stop":
        machine.end(name)
        return ""
    if name not in machine.services:
        loaded = f"{name}.service not loaded." if verb == "stop" else f"Unit {name}.service not found."
        raise Says(5, f"Failed to {verb} {name}.service: {loaded if verb == 'start' else 'Unit ' + loaded}")
    machine.services[name] = "active" if verb == "start" else "inactive"
    if (verb, name) == ("start", "nfs-server"):
        machine.services["nfs-mountd"] = "active"
    return ""


def show(machine, name: str, properties: list[str]) -> str:
    known = name in machine.services or name in machine.units
    state = "active" if name in machine.units else machine.services.get(name, "inactive")
    told = {"LoadState": "loaded" if known else "not-found", "ActiveState": state}
    return "".join(f"{each}={told[each]}\n" for each in properties)


def systemd_run(machine, words: Words) -> str:
    name = next(word for word in words if word.startswith("--unit=")).removeprefix("--unit=")
    command = words[words.index("--") + 1 :]
    if name in machine.units:
        raise Says(1, f"Failed to start transient service unit: Unit {name}.service was already loaded.")
    given = dict(word.split("=", 1) for word in every(words, "-p"))
    opened = machine.volume_at(given.get("StandardInput", "").removeprefix("file:"))
    machine.begin(name, command, opened, given.get("WorkingDirectory", "/"))
    return "" if "--quiet" in words else f"Running as unit: {name}.service\n"


# qemu-img: an image is a real header, and after it the bytes with which the disk begins


def qemu_img(machine, words: Words) -> str:
    return QEMU[words[0]](machine, words[1:])


def image(size: int, data: bytes) -> bytes:
    return qcow2(size) + data


def opened(machine, path: str, status: int = 1) -> bytes:
    try:
        return machine.real(path).read_bytes()
    except OSError as error:
        raise Says(status, f"qemu-img: Could not open '{path}': {error.strerror}") from None


def opened_qcow2(machine, path: str, status: int = 1) -> tuple[int, bytes]:
    """Virtual size and data."""
    whole = opened(machine, path, status)
    header = Header(whole[:HEAD])
    if not header.is_qcow2:
        raise Says(status, f"qemu-img: Could not open '{path}': Image is not in qcow2 format")
    return header.size, whole[HEAD:]


def raw(machine, path: str, status: int = 1) -> tuple[int, bytes]:
    """Size and data of a device."""
    try:
        file = machine.real(path)
        return file.stat().st_size, data_of(file)
    except OSError as error:
        raise Says(status, f"qemu-img: Could not open '{path}': {error.strerror}") from None


def head_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(HEAD)


def data_of(file: Path) -> bytes:
    return head_of(file).rstrip(b"\0")


def convert(machine, words: Words) -> str:
    size, data = raw(machine, words[-2])
    try:
        machine.real(words[-1]).write_bytes(image(size, data))
    except OSError as error:
        raise Says(1, f"qemu-img: {words[-1]}: error while converting qcow2: {error.strerror}") from None
    return "    (100.00/100%)\r\n"


def check(machine, words: Words) -> str:
    opened_qcow2(machine, words[-1])
    return json.dumps({"filename": words[-1], "format": "qcow2", "check-errors": 0})


def compare(machine, words: Words) -> str:
    if raw(machine, words[-2], 2) != opened_qcow2(machine, words[-1], 2):
        raise Says(1, "Content mismatch at offset 0!")
    return "Images are identical.\n"


def info(machine, words: Words) -> str:
    size, _ = opened_qcow2(machine, words[-1])
    specific = {"type": "qcow2", "data": {"compat": "1.1", "corrupt": False}}
    return json.dumps(
        {
            "virtual-size": size,
            "filename": words[-1],
            "format": "qcow2",
            "format-specific": specific,
            "dirty-flag": False,
        }
    )


def dd(machine, words: Words) -> str:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    machine.real(given["of"]).write_bytes(opened_qcow2(machine, given["if"])[1])
    return ""


QEMU = {"convert": convert, "check": check, "compare": compare, "info": info, "dd": dd}


# libvirt


def virsh(machine, words: Words) -> str:
    verb = next(word for word in words if word in VIRSH)
    if verb == "list":
        return "".join(f"{each}\n" for each in machine.domains)
    domain = machine.domains.get(after(words, "--domain"))
    if domain is None:
        named = after(words, "--domain")
        raise Says(1, f"error: failed to get domain '{named}'")
    return VIRSH[verb](machine, domain, words)


def domstate(machine, domain, words: Words) -> str:
    return domain.state + "\n\n"


def dumpxml(machine, domain, words: Words) -> str:
    disk = f"<driver name='qemu' type='qcow2'/><source file={quoteattr(domain.disk)}/><target dev='vdb' bus='virtio'/>"
    return (
        f"<domain type='kvm'><name>{domain.name}</name><uuid>{domain.uuid}</uuid>"
        f"<devices><disk type='file' device='disk'>{disk}</disk></devices></domain>\n"
    )


def metadata(machine, domain, words: Words) -> str:
    if "--set" in words:
        domain.mark = after(words, "--set")
        return "Metadata modified\n"
    if "--remove" in words and domain.mark:
        domain.mark = ""
        return "Metadata removed\n"
    if not domain.mark and "--remove" not in words:
        raise Says(1, "error: metadata not found: Requested metadata element is not present")
    return domain.mark + "\n\n"


def shutdown(machine, domain, words: Words) -> str:
    if domain.state != "running":
        raise Says(1, f"error: Failed to shutdown domain '{domain.uuid}'\nerror: {NOT_RUNNING}")
    domain.state = "shut off"
    machine.log(domain, "shutting down, reason=shutdown")
    return f"Domain '{domain.uuid}' is being shutdown\n\n"


NOT_RUNNING = "Requested operation is not valid: domain is not running"


def start(machine, domain, words: Words) -> str:
    if domain.state == "running":
        raise Says(1, "error: Domain is already active")
    if not Header(head_of(machine.real(domain.disk))).is_qcow2:
        raise Says(1, f"error: Failed to start domain '{domain.name}'\nerror: internal error: process exited")
    domain.state = "running"
    machine.log(domain, "starting up libvirt version: 9.0.0")
    return f"Domain '{domain.name}' started\n\n"


VIRSH = {"list": None, "domstate": domstate, "dumpxml": dumpxml, "metadata": metadata}
VIRSH |= {"shutdown": shutdown, "start": start}

Tool = Callable[..., str | None]
TOOLS: dict[str, Tool] = {
    **{"lvs": lvs, "vgs": vgs, "lvcreate": lvcreate, "lvremove": lvremove, "lvchange": lvchange},
    **{"blkid": blkid, "mkfs.ext4": mkfs_ext4, "mount": mount, "umount": umount, "exportfs": exportfs},
    **{"systemctl": systemctl, "systemd-run": systemd_run, "qemu-img": qemu_img, "virsh": virsh},
}


def new_uuids() -> Iterator[str]:
    """UUIDs as LVM gives them to volumes."""
    while True:
        digits = uuid.uuid4().hex
        yield "-".join((digits[:6], *(digits[at : at + 4] for at in range(6, 26, 4)), digits[26:]))
