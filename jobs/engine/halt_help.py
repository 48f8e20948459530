"""Halts in words: what was expected where something else was seen, how to look at it, and the safe ways on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final

from jobs.engine import routes
from jobs.engine.evidence import Evidence
from jobs.engine.migration import Migration
from jobs.engine.steps import Task, hypervisor_role

# What should have been the case, for every code that volmig or its hostctl can answer with.
EXPECTED: Final[Mapping[str, str]] = {
    # The way to a hypervisor or a cloud
    "HostError": "The hypervisor can be entered.",
    "Unreachable": "The hypervisor answers.",
    "NoFacts": "The hypervisor answers what it is asked.",
    "HostKeyUnknown": "The hypervisor's host key is pinned.",
    "HostKeyChanged": "The hypervisor offers the host key that was pinned.",
    "HostctlDiffers": "The hostctl of this volmig is installed there.",
    "Garbled": "hostctl answers with one JSON document.",
    "Denied": "The cloud believes the credential and lets it do this.",
    "TooOld": "The cloud's API is new enough.",
    # Requests and units
    "bad-request": "volmig asks for what hostctl knows.",
    "hostctl-differs": "The hostctl of this volmig is installed there.",
    "unknown-request": "An attempt is repeated as it was begun.",
    "other-owner": "The last change on the host was made by a worker that this volmig's database knows.",
    "other-incarnation": "The host belongs to this volmig.",
    "state-damaged": "What the hypervisor keeps of a migration, and of who owns it, can be read.",
    "stale-fence": "The migration had no later owner than this volmig knows.",
    "never-sent": "The hypervisor receives the request for the step.",
    "adopted": "The hypervisors remember what the database says was done.",
    "started-late": "A step starts while its worker still owns the migration.",
    "locked": "No other step of this migration is at work there.",
    "cannot-start": "systemd starts a unit for the step.",
    "lost": "The step ends with a result.",
    "no-policy": "A policy file says what volmig may do on the hypervisor.",
    "policy-unsafe": "Only root can have written the hypervisor's policy file.",
    "policy-invalid": "The hypervisor's policy file has all its fields, and no others.",
    "policy-role": "The hypervisor's policy gives it the role that the step needs.",
    "policy-stop": "The hypervisor's policy lets guests be shut down.",
    "policy-volume-group": "The hypervisor's policy allows the volume group.",
    "policy-share": "The hypervisor's policy allows the share.",
    "policy-directory": "The hypervisor's policy allows the directory of instances.",
    "policy-peer": "The hypervisor's policy allows the address of the other hypervisor.",
    "no-seal": "A step that cannot be taken back comes with the seal of its approval.",
    "no-seal-key": "The hypervisor's policy has the key by which seals are verified.",
    "seal-foreign": "The seal was made with the key of this hypervisor.",
    "seal-other-job": "The seal is for this migration.",
    "seal-other-verb": "The seal is for this step.",
    "seal-other-arguments": "The arguments of the step are those that were approved.",
    "seal-expired": "The step is carried out before its seal expires.",
    "bug": "hostctl works without an internal error.",
    "act-failed": "The command ends well.",
    "probe-failed": "The question is answered.",
    "still-running": "Nothing of this migration runs there any more.",
    "stays-busy": "What another step of this migration began there has ended.",
    "no-card": "A card of the swap lies on the share.",
    # Volumes
    "no-volume": "The temporary volume is there and active.",
    "no-volume-group": "The volume group is there.",
    "group-not-whole": "The volume group is whole and LVM can write to its metadata.",
    "unreadable-report": "lvs and vgs report in JSON.",
    "volume-not-known": "LVM reads every volume group, so that a volume that is not reported is not there.",
    "no-space": "The volume group has room.",
    "size-not-extents": "The size is a multiple of the extent size.",
    "not-a-volume": "The source is a block device.",
    "unknown-volume": "The volume has the identity and the size that were planned.",
    "foreign-volume": "The volume is this migration's own: by its UUID, its size and its tags.",
    "foreign-device": "The device node leads to the volume that is to be erased.",
    "volume-open": "Nothing has the volume open.",
    "volume-not-healthy": "The volume is active and healthy.",
    "source-open": "Nothing but volmig has the source volume open.",
    "source-written": "Nobody has written to the source volume since it was fenced.",
    "foreign-fence": "No other migration has fenced the source volume.",
    "no-holder": "The holder keeps the source volume open.",
    "still-held": "The holder has let go of the source volume.",
    "not-fenced": "The source volume is read-only.",
    "not-released": "The source volume is again as it was found.",
    "not-erased": "The temporary volume is zero from end to end.",
    "still-there": "The temporary volume is gone.",
    # Filesystem, export, mounts
    "foreign-signature": "The temporary volume is blank.",
    "foreign-directory": "The directory belongs to whom it should.",
    "foreign-mount": "Nothing else is mounted there.",
    "foreign-export": "It is exported to the source alone, as planned.",
    "mount-busy": "Nobody uses the mount any more.",
    "not-mounted": "The relay's filesystem is mounted.",
    "not-exported": "The export is in force.",
    "still-exported": "The export is taken back.",
    "nfs-not-running": "The NFS server runs.",
    "services-left": "What volmig started of the NFS server is stopped again.",
    "mangled": "What was written over the network is read back unchanged.",
    # Copy and stage
    "bad-image": "The copy is a plain qcow2 image of the planned size.",
    "wrong-bytes": "The staged copy has the bytes that were hashed.",
    "foreign-file": "The file is a plain one of this migration's, with one name.",
    "foreign-files": "Only this migration's own files lie in its directory.",
    "not-readable": "The file can be read.",
    "no-stage": "The staged copy is there.",
    "stage-lost": "The staged copy lies beside the live disk, as it was verified.",
    "unknown-stage": "No swap of this migration has begun before the copy is staged.",
    "unknown-files": "In the migration's directory lies only what it put there.",
    "foreign-stage": "Beside the live disk lies the copy that was verified, and no other file of that name.",
    "unknown-share": "The planned share is mounted there.",
    # The swap
    "unknown-state": "The disks, or the instance, are in a state in which it is safe to go on.",
    "unknown-file": "The disk is a plain file with the names that it should have.",
    "unknown-inode": "The live disk is the file that was recorded.",
    "unknown-identity": "The inode numbers of both disks are recorded.",
    "changed": "The disk is as it was when it was recorded.",
    "attributes-differ": "The new disk can be given the owner, mode and label of the old one.",
    "base-missing": "Every file that the disk stands on is there, and is the one that it was made on.",
    "crosses-filesystems": "The live disk can be given a second name in the migration's directory.",
    "disk-in-use": "No QEMU on any client of the share has the disk open.",
    "not-ours-to-lock": "The disk can be opened to try its locks.",
    "not-shut-off": "The instance stays shut off.",
    "not-linked": "The live disk has its second name.",
    "not-done": "The new disk is the live one.",
    # The instance
    "unknown-instance": "The instance is there.",
    "no-facts": "Each hypervisor, and the cloud, reports the requested facts.",
    "no-answer": "hostctl answers on the hypervisor, and nothing ends its process (such as a lack of memory).",
    "timed-out": "The share, disk or service that a question is about answers the hypervisor in time.",
    "too-many-stuck": "No earlier questions hang on the hypervisor.",
    "unknown-host": "The instance is on its hypervisor.",
    "unknown-disk": "The instance uses the disk that is to be swapped.",
    "no-domain": "libvirt knows the instance.",
    "no-libvirt": "There is libvirt on this hypervisor.",
    "foreign-lock": "No one else has locked the instance.",
    "foreign-action": "Only volmig changes the instance.",
    "not-marked": "The instance carries this migration's mark.",
    "still-marked": "The instance carries no mark of this migration any more.",
    "not-locked": "The instance is locked for volmig.",
    "still-locked": "The instance is not locked any more.",
    "stop-deadline": "The instance shuts down in time.",
    "stop-refused": "Nova accepts to shut the instance down.",
    "stop-failed": "The instance shuts down.",
    "start-refused": "Nova accepts to start the instance.",
    "start-failed": "The instance starts.",
    "not-running": "The instance runs.",
    "still-powering-on": "The instance starts in time.",
    "still-powering-off": "The instance shuts down in time.",
    "not-settled": "The instance is running or shut off, and nobody works on it.",
    # What the engine itself sees
    "unready": "Everything that the step needs was measured by the steps before it.",
    "left-behind": "Nothing of this migration is left on the hypervisor.",
    "not-undone": "Everything that was made can be taken back.",
}
FAMILIES: Final[Mapping[str, str]] = {
    "foreign-": "Only what this migration made itself.",
    "unknown-": "Only what was recorded and is known.",
}
# Where nobody has said what to do by hand, or more exactly than hostctl can know.
BY_HAND: Final[Mapping[str, str]] = {
    "foreign-stage": "Find out whose that file is and move it away; then resume: the copy is made again.",
    "foreign-action": "See what was done to it, and by whom. If it did no harm, resume: then it counts as seen.",
    "unknown-instance": "Find out whether the instance was deleted or moved on purpose, then choose one of these ways.",
    "no-facts": "Find out why it answers without the facts: its own words are above. Then resume.",
    "unready": "Report this: the step before did not measure what it should. Resume checks again.",
    "left-behind": "Remove by hand what is listed under Found, then resume.",
    "not-undone": "Correct by hand what is listed under Found, then resume: what is gone counts as removed.",
    "HostError": "Correct what the sentence says about the hypervisor, then resume.",
    "HostctlDiffers": "Install this volmig's hostctl there (page Hypervisors), then resume.",
    "Garbled": "Log in there and see what answers in the place of hostctl; then resume.",
    "Denied": "Have the credential checked on the cloud's page, then resume.",
    "TooOld": "Upgrade the cloud, or have it controlled by libvirt for migrations yet to come.",
}
USUAL: Final = "Check the hypervisor, correct what was found, then resume: volmig checks the step again first."
GONE: Final = (
    "If the instance is gone for good: delete the migration's directory {directory} on {destination} by hand, then "
    "resume: where nothing is left, nothing has to be purged."
)
START: Final = (
    "If the instance does not start through volmig: start it by hand on {destination} (or have Nova start it), on the "
    "disk that lies there now, then resume: volmig sees it running, and the trial begins. From there you can request a "
    "rollback."
)
BACK: Final = (
    "If the old disk has to come back although the new one was written to: with the instance shut off, run "
    "`volmig-hostctl rollback {job}` on {destination}, then resume. What was written stays in disk.rejected."
)
RESUME: Final[Mapping[str, str]] = {
    "preparing": "Checks this step again. Keeps what is proved and repeats the rest. Does not change the live disk.",
    "awaiting_approval": "Reads the facts again. If the copy is intact, requests approval again; else copies again.",
    "approved": "Reads the facts again. If they are as approved, continues the swap; else requests approval again.",
    "swapping": "Checks the inodes and the instance again, and continues from what it finds; does nothing twice.",
    "on_trial": "Checks again; what others have done to the instance until now counts as seen by you.",
    "rolling_back": "Checks again, and puts the old disk back from whatever state it finds.",
    "undoing": "Tries again to remove what is still there; what is already gone counts as removed.",
    "purging": "Checks the kept disk again, and deletes it only if it is the one that was approved.",
}
CANCEL: Final[Mapping[str, str]] = {
    "swapping": "Puts the old disk back and starts the instance on it; keeps the new disk.",
}
CANCEL_USUAL: Final = (
    "Removes everything that has this migration's mark, and nothing else. "
    "Then you can submit it again, also through another relay."
)


def expected(code: str) -> str:
    """What should have been the case, as a sentence."""
    family = next((said for beginning, said in FAMILIES.items() if code.startswith(beginning)), "")
    return EXPECTED.get(code) or family or "The step ends as planned."


def by_hand(status: str, code: str, said: str, migration: Migration, instances: str) -> list[str]:
    """What a person can do outside volmig; `said` is what whoever refused it recommends."""
    last = {"purging": GONE, "swapping": START, "rolling_back": BACK}.get(status, "")
    names = {"job": migration.job, "destination": migration.destination}
    told = last.format(**names, directory=routes.of(migration).sink.directory(migration, instances))
    return [BY_HAND.get(code) or said or USUAL, *([told] if told else [])]


def looks(migration: Migration, on: str, instances: str) -> list[str]:
    """Commands that only read, for a person to run on the hypervisor of a step with this `on`."""
    commands = routes.of(migration).look_commands(migration, hypervisor_role(on), instances)
    return [shlex.join(words) for words in commands]


def disks(migration: Migration, evidence: Evidence) -> list[str]:
    """Which disk is which, as recorded, in words."""
    sink = routes.of(migration).sink
    return sink.disks(evidence.of(Task.STOP), evidence.of(Task.VERIFY), evidence.of(Task.EXCHANGE))
