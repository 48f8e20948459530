"""The verbs: what each needs, what it will do, and the function that does it."""

from typing import Any, Callable, Dict, NamedTuple, Tuple

from . import detached, filesystem, lvm, nfs, qemu_img, stage, swap, virsh
from .act import Act, Args

Builder = Callable[[Args, str], Tuple[Act, ...]]


def nothing(args: Args, job: str) -> Tuple[Act, ...]:
    return ()


class Verb(NamedTuple):
    """`needs`: required arguments; `acts`: pure builder of what it changes."""

    needs: Tuple[str, ...]
    acts: Builder = nothing


def _verb(needs: str, acts: Builder = nothing) -> Verb:
    return Verb(tuple(needs.split()), acts)


VERBS = {
    "hello": _verb(""),
    "inventory": _verb(""),
    "reach": _verb("targets"),
    "source_facts": _verb("vg lv relay_address"),
    "relay_facts": _verb("vg share_source relay_lv"),
    "destination_facts": _verb("instance disk share_source"),
    "instance_state": _verb("instance"),
    "status": _verb(""),
    "lv_create": _verb("vg lv size", lvm.create_acts),
    "lv_remove": _verb("vg lv size", lvm.remove_acts),
    "fs_create": _verb("vg lv lv_uuid size fs_uuid mountpoint", filesystem.create_acts),
    "fs_remove": _verb("mountpoint", filesystem.remove_acts),
    "export": _verb("mountpoint fs_uuid client uid gid start", nfs.export_acts),
    "unexport": _verb("mountpoint client", nfs.unexport_acts),
    "nfs_mount": _verb("address export mountpoint fs_uuid", nfs.mount_acts),
    "nfs_unmount": _verb("mountpoint", nfs.unmount_acts),
    "lv_fence": _verb("vg lv lv_uuid size", lvm.fence_acts),
    "lv_unfence": _verb("vg lv", lvm.unfence_acts),
    "convert": _verb("vg lv lv_uuid size mountpoint fs_uuid rate", qemu_img.convert_acts),
    "compare": _verb("vg lv lv_uuid size mountpoint writes sectors_written", qemu_img.compare_acts),
    "discard_copy": _verb("mountpoint", qemu_img.discard_acts),
    "stage": _verb("mountpoint instances share_source rate size", stage.stage_acts),
    "unstage": _verb("instances", stage.unstage_acts),
    "stage_verify": _verb("instances share_source sha256 file_size virtual_size", stage.verify_acts),
    "instance_lock": _verb("instance reason", virsh.lock_acts),
    "instance_unlock": _verb("instance reason", virsh.unlock_acts),
    "instance_stop": _verb("instance disk instances", virsh.stop_acts),
    "instance_start": _verb("instance disk instances", virsh.start_acts),
    "swap": _verb("instance disk instances share_source live stage virtual_size", swap.swap_acts),
    "swap_back": _verb("instance disk instances", swap.swap_back_acts),
    "purge": _verb("instance disk instances backup_inode live_inode", swap.purge_acts),
    "forget": _verb("", detached.forget_acts),
}  # type: Dict[str, Verb]


def acts(verb: str, args: Args, job: str = "«job»") -> Tuple[Act, ...]:
    """What `verb` will change, in order; pure. Arguments may hold placeholders («…»). Unknown verbs: KeyError."""
    return VERBS[verb].acts(args, job)
