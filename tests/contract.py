"""What the tools of a hypervisor say, and with which exit status they end, when they do and when they refuse.

The same scenes run over tests/faketools.py (tests/hostctl/test_contract.py) and on the lab's guests
(tests/lab_tests/test_contract.py), so that the fakes cannot drift from what is real. Words come from hostctl's own
builders wherever it has one.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hosts.remote.hostctl import lvm, nfs_mount, nfs_server, qemu_img, relay_filesystem, virsh
from hosts.remote.hostctl.commands import Output

MIB = 1 << 20
JOB, OTHER = "c0517ac7-0000-4111-8222-933334444555", "c0517ac7-9999-4111-8222-933334444555"
HEX = JOB.replace("-", "")
GROUP, SIZE = "vg_nova0", 16 * MIB
SERVED, THERE, IMAGE = f"/srv/volmig/{HEX}", f"/mnt/volmig/{HEX}", "/var/tmp/contract.qcow2"
VOLUME = {"vg": GROUP, "lv": "volmig_contract", "size": SIZE}
ARGS = {**VOLUME, "fs_uuid": JOB, "mountpoint": SERVED, "uid": 0, "gid": 0, "start": [], "rate": 0}


class Scene(NamedTuple):
    """What is asked for, the exit status, and what is to be found in what is said (an expression)."""

    words: tuple[str, ...]
    exit: int = 0
    says: str = ""


def differences(scenes: Iterable[Scene], run: Callable[[list[tuple[str, ...]]], list[Output]]) -> list[str]:
    """What came out otherwise than it should, one line each."""
    played = list(scenes)
    told = run([each.words for each in played])
    return [
        f"{' '.join(scene.words)}: ended with {output.exit}, said {output.out + output.err!r}; not {scene[1:]}"
        for scene, output in zip(played, told, strict=True)
        if output.exit != scene.exit or not re.search(scene.says, output.out + output.err)
    ]


def lvs(fields: str, select: str) -> tuple[str, ...]:
    return ("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, "-S", select)


def created(**other: object) -> tuple[str, ...]:
    return lvm.create_acts({**ARGS, **other}, JOB)[0].argv


def row(**values: str) -> str:
    """How a report tells a row with these values."""
    return r"\s*,\s*".join(rf'"{name}"\s*:\s*"{value}"' for name, value in values.items())


NONE = r'"lv"\s*:\s*\[\s*\]'
OURS = f'vg_name="{GROUP}" && lv_name="{VOLUME["lv"]}"'
MAKE, MKDIR, MOUNT, _ = relay_filesystem.create_acts(ARGS, JOB)
TAG, FENCE, HOLD = lvm.fence_acts(ARGS, JOB)
LETGO, RELEASE, UNTAG = lvm.unfence_acts(ARGS, JOB)
DEVICE = lvm.device(ARGS)
OF_OTHER = f'lv_name="{VOLUME["lv"]}" && lv_tags={{"volmig.job={OTHER}"}}'
PROBE = ("blkid", "-p", "-o", "export", "--")
SHOW = ("systemctl", "show", "-p", "LoadState", "-p", "ActiveState", "--")
NFS_UNITS = ("rpcbind", "nfs-server")  # which starts the others


def volumes() -> list[Scene]:
    """On a host with the volume group, on which nothing of this job is."""
    in_use = lvm.remove_acts({**ARGS, "made": {}}, JOB)[1].argv
    drop = ("lvremove", "--yes", "-S", f'lv_name="{VOLUME["lv"]}"', "--", GROUP)
    return [
        Scene(lvs("lv_name", OURS), 0, NONE),
        Scene(created(vg="no_such_group"), 5, 'Volume group "no_such_group" not found'),
        Scene(created(size=1 << 45), 5, "insufficient free space"),
        Scene(created()),
        Scene(created(), 5, "already exists"),
        Scene(lvs("lv_size,lv_permissions", OURS), 0, row(lv_size=str(SIZE), lv_permissions="writeable")),
        Scene(lvs("lv_active,lv_device_open", OURS), 0, row(lv_active="active", lv_device_open="")),
        Scene(lvs("lv_attr", OURS), 0, row(lv_attr="-wi-a-----")),
        Scene(lvs("lv_tags", f'lv_tags={{"volmig.job={JOB}"}}'), 0, row(lv_tags=f"volmig,volmig.job={JOB}")),
        # The fence of a source
        Scene(TAG.argv),
        Scene(TAG.argv),
        Scene(FENCE.argv),
        Scene(FENCE.argv, 5, "already read.only"),
        Scene(lvs("lv_permissions", OURS), 0, row(lv_permissions="read-only")),
        Scene(HOLD.argv),
        Scene(HOLD.argv, 1, "already"),
        Scene(lvs("lv_device_open", OURS), 0, row(lv_device_open="open")),
        Scene(in_use, 5, "in use"),
        Scene(drop, 5, "in use"),
        Scene(LETGO.argv),
        Scene(LETGO.argv, 5, "not loaded"),
        Scene(RELEASE.argv),
        Scene(RELEASE.argv, 5, "already writable"),
        Scene(UNTAG.argv),
        Scene(UNTAG.argv),
        Scene(("lvchange", "-an", "--", f"{GROUP}/no_such_volume"), 5, "Failed to find logical volume"),
        # Its end
        Scene(("lvremove", "--yes", "-S", OF_OTHER, "--", GROUP)),
        Scene(lvs("lv_name", OURS), 0, row(lv_name=VOLUME["lv"])),
        Scene(in_use),
        Scene(lvs("lv_active,lv_kernel_minor", OURS), 0, row(lv_active="", lv_kernel_minor="-1")),
        Scene((*PROBE, DEVICE), 2),
        Scene(("lvchange", "-ay", "--", lvm.name(ARGS))),
        Scene(drop),
        Scene(lvs("lv_name", OURS), 0, NONE),
    ]


def relaying(address: str) -> list[Scene]:
    """The same, with an NFS server that is installed and does not run; `address` is its own."""
    given = {**ARGS, "client": address, "address": address, "export": SERVED}
    offer, withdraw = nfs_server.export_acts(given, JOB)[-1].argv, nfs_server.unexport_acts(given, JOB)[1].argv
    attach = nfs_mount.mount_acts({**given, "mountpoint": THERE}, JOB)[1].argv
    unmount, detach = (relay_filesystem.remove_acts({"mountpoint": path}, JOB)[0].argv for path in (SERVED, THERE))
    dwell = (
        "systemd-run",
        "--quiet",
        "--unit=contract-dweller",
        "-p",
        "Type=exec",
        "-p",
        f"WorkingDirectory={SERVED}",
        "--",
    )
    return [
        Scene(created()),
        Scene((*PROBE, DEVICE), 2),
        Scene(MOUNT.argv, 32, "mount point does not exist"),
        Scene(("mkdir", "-p", SERVED, THERE)),
        Scene(MOUNT.argv, 32, "wrong fs type"),
        Scene(MAKE.argv),
        Scene((*PROBE, DEVICE), 0, f"(?s)UUID={JOB}.*TYPE=ext4"),
        Scene(unmount, 32, "not mounted"),
        Scene(MOUNT.argv),
        Scene(MOUNT.argv, 32, "already mounted"),
        Scene(MAKE.argv, 1, "is mounted"),
        Scene(lvs("lv_device_open", OURS), 0, row(lv_device_open="open")),
        Scene(("lvremove", "--yes", "-S", OURS, "--", GROUP), 5, "in use"),
        # Services and exports
        Scene(("exportfs", "-s"), 0, r"\A\s*\Z"),
        Scene((*SHOW, "nfs-server"), 0, "LoadState=loaded\nActiveState=inactive"),
        Scene((*SHOW, "no-such-unit"), 0, "LoadState=not-found\nActiveState=inactive"),
        Scene(("systemctl", "start", "--", "no-such-unit"), 5, "not found"),
        Scene(("systemctl", "stop", "--", "no-such-unit"), 5, "not loaded"),
        *(Scene(("systemctl", "start", "--", unit)) for unit in NFS_UNITS),
        Scene((*SHOW, "nfs-mountd"), 0, "LoadState=loaded\nActiveState=active"),
        Scene(attach, 32, "access denied"),
        Scene(withdraw, 1, "Could not find"),
        Scene(offer),
        Scene(("exportfs", "-s"), 0, rf"(?m)^{SERVED}  {address}\(sync,.*,fsid={JOB},mountpoint,.*,all_squash\)$"),
        Scene(attach),
        Scene(detach),
        Scene(detach, 32, "not mounted"),
        Scene(("umount", "--", "/mnt/volmig/no_such_place"), 32, "no mount point specified"),
        Scene(withdraw),
        Scene(("exportfs", "-f")),
        Scene(attach, 32, "access denied"),
        *(Scene(("systemctl", "stop", "--", unit)) for unit in ("nfs-server", "nfs-mountd")),
        # Busy
        Scene((*dwell, "/usr/bin/sleep", "infinity")),
        Scene(unmount, 32, "busy"),
        Scene((*SHOW, "contract-dweller.service"), 0, "ActiveState=active"),
        Scene(("systemctl", "stop", "--", "contract-dweller.service")),
        Scene((*SHOW, "contract-dweller.service"), 0, "ActiveState=inactive"),
        Scene(unmount),
        Scene(("rmdir", SERVED, THERE)),
        *copying(),
        Scene(("lvremove", "--yes", "-S", OURS, "--", GROUP)),
    ]


def copying() -> list[Scene]:
    """With the volume there, and data on it."""
    args = {**ARGS, "lv": "volmig_other"}
    compare = ("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "-T", "none", "--")
    convert = (*qemu_img.convert_acts(ARGS, JOB)[0].argv[:-1], IMAGE)
    check = ("qemu-img", "check", "-f", "qcow2", "--output=json", "--")
    return [
        Scene(("mkdir", "-p", "/var/tmp")),
        Scene(convert, 0, r"\(100\.00/100%\)"),
        Scene(qemu_img.info_words(IMAGE), 0, rf'"virtual-size": {SIZE}\b'),
        Scene(qemu_img.info_words(DEVICE), 1, "not in qcow2 format"),
        Scene(qemu_img.info_words("/run/no-such-image"), 1, "Could not open"),
        Scene((*check, IMAGE), 0, '"check-errors": 0'),
        Scene((*check, "/run/no-such-image"), 1, "Could not open"),
        Scene((*compare, DEVICE, IMAGE), 0, "Images are identical"),
        Scene(created(lv="volmig_other")),
        Scene((*compare, lvm.device(args), IMAGE), 1, "Content mismatch"),
        Scene((*compare, DEVICE, "/run/no-such-image"), 2, "Could not open"),
        Scene(("lvremove", "--yes", "-S", 'lv_name="volmig_other"', "--", GROUP)),
        Scene(("rm", IMAGE)),
    ]


def instance(identity: str) -> list[Scene]:
    """On a hypervisor that knows an instance, which is shut off."""
    args, stranger = {"instance": identity, "reason": f"volmig:{JOB}"}, {"instance": OTHER}
    asked = ("virsh", "-r", "-c", virsh.URI, "domstate", "--domain")
    marked = ("virsh", "-c", virsh.URI, "metadata", "--domain", identity, "--config", "--uri", virsh.MARK)
    return [
        Scene((*asked, OTHER), 1, virsh.DOMAIN_GONE[0]),
        Scene((*asked, identity), 0, r"\Ashut off\n"),
        Scene(virsh.stop_acts(stranger, JOB)[0].argv, 1, virsh.DOMAIN_GONE[0]),
        Scene(virsh.stop_acts(args, JOB)[0].argv, 1, "domain is not running"),
        Scene(marked, 1, virsh.NO_MARK),
        Scene(virsh.lock_acts(args, JOB)[0].argv),
        Scene(virsh.lock_acts(args, JOB)[0].argv),
        Scene(marked, 0, rf'reason="volmig:{JOB}"'),
        Scene(virsh.unlock_acts(args, JOB)[0].argv),
        Scene(marked, 1, virsh.NO_MARK),
        Scene(virsh.start_acts(args, JOB)[0].argv, 0, "started"),
        Scene(virsh.start_acts(args, JOB)[0].argv, 1, "already active"),
        Scene((*asked, identity), 0, r"\Arunning\n"),
    ]
