"""The verbs: what each needs, what it will do, and the function that does it."""

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from . import (
    facts,
    leftovers,
    lvm,
    nfs_mount,
    nfs_server,
    qemu_img,
    rehearsal,
    relay_filesystem,
    stage,
    swap,
    transient_units,
    virsh,
)
from .act import Act, Args
from .commands import Work

Builder = Callable[[Args, str], Tuple[Act, ...]]
Run = Callable[[Work], Dict[str, Any]]
Properties = Callable[[Args, str], List[str]]
SERVICES = nfs_server.UNITS


def nothing(args: Args, job: str) -> Tuple[Act, ...]:
    """A verb that changes nothing."""
    return ()


def unconfined(args: Args, job: str) -> List[str]:
    """A verb whose unit needs no properties."""
    return []


def handled(work: Work) -> Dict[str, Any]:
    """For verbs that the desk answers itself."""
    raise NotImplementedError


class Verb(NamedTuple):
    """`needs`: required arguments; `acts`: pure builder of what it changes; `sandbox`: properties of its unit."""

    needs: Tuple[str, ...]
    run: Run
    acts: Builder
    mutates: bool
    sandbox: Properties


def _asks(needs: str, run: Run = handled) -> Verb:
    return Verb(tuple(needs.split()), run, nothing, False, unconfined)


def _does(needs: str, run: Run, acts: Builder, sandbox: Properties = unconfined) -> Verb:
    return Verb(tuple(needs.split()), run, acts, True, sandbox)


VERBS: Dict[str, Verb] = {
    "hello": _asks("", facts.hello),
    "policy": _asks(""),
    "inventory": _asks("", facts.inventory),
    "leftovers": _asks("", leftovers.leftovers),
    "reach": _asks("targets", facts.reach),
    "source_facts": _asks("vg lv relay_address", facts.source_facts),
    "relay_facts": _asks("vg share_source relay_lv", facts.relay_facts),
    "destination_facts": _asks("instance disk share_source", facts.destination_facts),
    "instance_state": _asks("instance", facts.instance_state),
    "status": _asks(""),
    "recall": _asks(""),
    "fence": _asks(""),
    "own": _asks(""),
    "watch": _asks(""),
    "lv_create": _does("vg lv size", lvm.create, lvm.create_acts),
    "lv_remove": _does("vg lv size", lvm.remove, lvm.remove_acts),
    "fs_create": _does("vg lv lv_uuid size fs_uuid mountpoint", relay_filesystem.create, relay_filesystem.create_acts),
    "fs_remove": _does("mountpoint", relay_filesystem.remove, relay_filesystem.remove_acts),
    "export": _does("mountpoint fs_uuid client uid gid start", nfs_server.export, nfs_server.export_acts),
    "unexport": _does("mountpoint client", nfs_server.unexport, nfs_server.unexport_acts),
    "nfs_mount": _does("address export mountpoint fs_uuid", nfs_mount.mount, nfs_mount.mount_acts),
    "nfs_unmount": _does("mountpoint", nfs_mount.unmount, nfs_mount.unmount_acts),
    "lv_fence": _does("vg lv lv_uuid size", lvm.fence, lvm.fence_acts),
    "lv_unfence": _does("vg lv", lvm.unfence, lvm.unfence_acts),
    "convert": _does("vg lv lv_uuid size mountpoint rate", qemu_img.convert, qemu_img.convert_acts, qemu_img.sandbox),
    "compare": _does(
        "vg lv lv_uuid size mountpoint writes sectors_written",
        qemu_img.compare,
        qemu_img.compare_acts,
        qemu_img.sandbox,
    ),
    "discard_copy": _does("mountpoint", qemu_img.discard, qemu_img.discard_acts),
    "seal": _does("mountpoint", stage.seal, stage.seal_acts),
    "stage": _does("mountpoint instances share_source rate size sha256", stage.stage, stage.stage_acts),
    "unstage": _does("instances", stage.unstage, stage.unstage_acts),
    "stage_verify": _does("instances share_source sha256 file_size virtual_size", stage.verify, stage.verify_acts),
    "instance_lock": _does("instance reason", virsh.lock, virsh.lock_acts),
    "instance_unlock": _does("instance reason", virsh.unlock, virsh.unlock_acts),
    "instance_stop": _does("instance disk instances", virsh.stop, virsh.stop_acts),
    "instance_start": _does("instance disk instances", virsh.start, virsh.start_acts),
    "swap": _does("instance disk instances share_source live stage virtual_size", swap.swap, swap.swap_acts),
    "swap_back": _does("instance disk instances", swap.swap_back, swap.swap_back_acts),
    "purge": _does("instance disk instances backup_inode live_inode", swap.purge, swap.purge_acts),
    "rehearse": _does("instances share_source backup_path recorded", rehearsal.rehearse, nothing, rehearsal.sandbox),
    "forget": _does("", handled, transient_units.forget_acts),
}


def acts(verb: str, args: Args, job: str = "«job»") -> Tuple[Act, ...]:
    """What `verb` will change, in order; pure. Arguments may hold placeholders («…»). Unknown verbs: KeyError."""
    return VERBS[verb].acts(args, job)
