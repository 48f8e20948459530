"""What the owner of this hypervisor lets volmig do here: /etc/volmig/hostctl.json, which only root may have written.

Every verb is compared with it before anything runs, by one function that volmig uses as well when it checks a plan.
"""

import hashlib
import ipaddress
import json
import os
import re
import stat
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .act import Args

PATH = "/etc/volmig/hostctl.json"
SIZE_CAP = 64 << 10
LIST_CAP = 256
KEYS_CAP = 2  # the key in use and, while it is being changed, the one before or after it
ROLES = ("source", "relay", "destination")
LISTS = ("roles", "volume_groups", "shares", "directories", "networks", "seal_keys")
FIELDS = (*LISTS, "stop_guests")


class Policy(NamedTuple):
    """The file's content: names as LVM, mount and libvirt have them, networks as CIDR, keys as 64 hex digits."""

    roles: Tuple[str, ...]
    volume_groups: Tuple[str, ...]
    shares: Tuple[str, ...]
    directories: Tuple[str, ...]
    networks: Tuple[str, ...]
    stop_guests: bool
    seal_keys: Tuple[str, ...]


class Objection(NamedTuple):
    """Why a verb may not run here: the code of the refusal, what was found, and what a person can do about it."""

    code: str
    found: str
    next_step: str


class Reading(NamedTuple):
    """The policy in force, or None and the objection that says why there is none; `hash` and `changed_at` of the file.

    `hash` is the first 16 hex digits of the file's SHA-256, `changed_at` its modification time in seconds.
    """

    policy: Optional[Policy]
    fault: Optional[Objection] = None
    hash: str = ""
    changed_at: float = 0.0


# What each verb is, to a policy


class Rule(NamedTuple):
    """A host that has one of `roles` may run the verb (empty: every host); `sealed` verbs need a seal as well.

    `stops` verbs shut guests down. `bound` names the arguments that the seal has to name, with the same values.
    """

    roles: Tuple[str, ...] = ()
    sealed: bool = False
    stops: bool = False
    bound: Tuple[str, ...] = ()


SOURCE, RELAY, DESTINATION = (Rule((role,)) for role in ROLES)
_DISK = ("instance", "disk")
RULES: Dict[str, Rule] = {
    "hello": Rule(),
    "policy": Rule(),
    "inventory": Rule(),
    "leftovers": Rule(),
    "reach": Rule(),
    "status": Rule(),
    "recall": Rule(),
    "own": Rule(),
    "fence": Rule(),
    "watch": Rule(),
    "forget": Rule(),
    "source_facts": SOURCE,
    "nfs_mount": SOURCE,
    "nfs_unmount": SOURCE,
    "lv_fence": SOURCE,
    "lv_unfence": SOURCE,
    "convert": SOURCE,
    "compare": SOURCE,
    "discard_copy": SOURCE,
    "relay_facts": RELAY,
    "lv_create": RELAY,
    "lv_remove": RELAY,
    "fs_create": RELAY,
    "fs_remove": RELAY,
    "export": RELAY,
    "unexport": RELAY,
    "seal": RELAY,
    "stage": RELAY,
    "unstage": RELAY,
    "destination_facts": DESTINATION,
    "instance_state": DESTINATION,
    "stage_verify": DESTINATION,
    "instance_lock": DESTINATION,
    "instance_unlock": DESTINATION,
    "instance_start": DESTINATION,
    "rehearse": DESTINATION,
    "instance_stop": Rule(("destination",), sealed=True, stops=True, bound=_DISK),
    "swap": Rule(("destination",), sealed=True, bound=(*_DISK, "share_source", "stage")),
    "swap_back": Rule(("destination",), sealed=True, bound=_DISK),
    "purge": Rule(("destination",), sealed=True, bound=(*_DISK, "backup_inode", "live_inode")),
}

# Arguments by name, however deep they lie in a request; what a policy limits, and what it need not.
LIMITED = {
    "vg": "volume_groups",
    "share_source": "shares",
    "instances": "directories",
    "backup_path": "directories",
    "address": "networks",
    "client": "networks",
    "relay_address": "networks",
}
# Names within what is limited, identities, paths that hold the job's UUID, words of fixed lists, numbers of ports; of
# mappings and lists the entries are compared.
FREE = frozenset(
    (
        *("lv", "relay_lv", "instance", "disk", "fs_uuid", "lv_uuid", "sha256", "mountpoint", "export", "holder_unit"),
        *("reason", "was", "options", "stops", "step", "direction", "job", "verb", "hash", "start", "started"),
        *("incarnation", "session", "after", "instead_of", "untouched", "targets"),
        *("made", "live", "stage", "recorded", "seal"),
    )
)
WORDS = {
    "volume_groups": ("policy-volume-group", "volume group", "volume_groups"),
    "shares": ("policy-share", "share", "shares"),
    "directories": ("policy-directory", "directory", "directories"),
    "networks": ("policy-peer", "address", "networks"),
}


UNKNOWN = "This is a bug in volmig: report it with the evidence archive of this migration."


def objections(reading: Reading, verb: str, args: Args, reads: bool) -> List[Objection]:
    """Why this verb may not run with these arguments; empty when it may. Pure. A verb without a rule never may.

    Where no policy is in force, verbs that only read (`reads`) may run, and no others.
    """
    policy, rule = reading.policy, RULES.get(verb)
    if rule is None:
        return [Objection("bad-request", "the policy has no verb %.100r" % verb, UNKNOWN)]
    if policy is None:
        return [] if reads else [reading.fault or missing()]
    found = []
    if rule.roles and not set(rule.roles) & set(policy.roles):
        found.append(
            Objection(
                "policy-role",
                "the role %s is needed, and this hypervisor has %s"
                % (" or ".join(rule.roles), ", ".join(policy.roles) or "none"),
                _allow("roles"),
            )
        )
    if rule.stops and not policy.stop_guests:
        found.append(
            Objection(
                "policy-stop", "this hypervisor's policy does not allow guests to be shut down", _allow("stop_guests")
            )
        )
    for name, value in _named(args):
        limit = LIMITED.get(name)
        if limit and not _allowed(limit, value, getattr(policy, limit)):
            code, what, where = WORDS[limit]
            found.append(
                Objection(
                    code,
                    "%s %s is not allowed here (allowed: %s)"
                    % (what, value, ", ".join(getattr(policy, limit)) or "none"),
                    _allow(where),
                )
            )
    return list(dict.fromkeys(found))


def _allow(field: str) -> str:
    return "If volmig is to do this, add it to %s in %s on this hypervisor as root, then resume." % (field, PATH)


def _named(args: Any, name: str = "") -> Iterator[Tuple[str, Any]]:
    """Every value of the arguments with its name, however deep."""
    if isinstance(args, dict):
        for key, value in args.items():
            for found in _named(value, key):
                yield found
    elif isinstance(args, list):
        for value in args:
            for found in _named(value, name):
                yield found
    else:
        yield name, args


def _allowed(limit: str, value: Any, listed: Tuple[str, ...]) -> bool:
    if limit == "networks":
        return any(_lies_in(value, network) for network in listed)
    if limit == "directories":
        return any(value == path or str(value).startswith(path + "/") for path in listed)
    return value in listed


def _lies_in(address: str, network: str) -> bool:
    try:
        found, within = ipaddress.ip_address(address), ipaddress.ip_network(network)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found) in within if (mapped or found).version == within.version else False


# Reading the file


def missing() -> Objection:
    """The objection of a host without a policy: no verb that changes anything is allowed."""
    return Objection(
        "no-policy",
        "%s does not exist, so hostctl only reads on this hypervisor" % PATH,
        "Install the policy that the hypervisor's page in volmig prints, as root, then resume.",
    )


def _unsafe(found: str) -> Reading:
    return Reading(
        None,
        Objection(
            "policy-unsafe",
            found,
            "Make root the owner of %s and of the directories above, mode 0600 for the file, then resume." % PATH,
        ),
    )


def _invalid(found: str) -> Reading:
    return Reading(
        None,
        Objection(
            "policy-invalid",
            "%s: %s" % (PATH, found),
            "Correct the file as the hypervisor's page in volmig shows it, then resume.",
        ),
    )


def read(path: str = PATH) -> Reading:
    """The policy that is in force on this host; never raises."""
    try:
        above = os.path.dirname(path)
        while True:
            if not _only_roots(os.lstat(above)):
                return _unsafe("%s can be changed by others than root, or is not a directory" % above)
            if above == "/":
                break
            above = os.path.dirname(above)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Reading(None, missing())
    except OSError as error:
        return _unsafe("%s cannot be opened: %s" % (path, error.strerror or error))
    try:
        return _read(fd, path)
    except OSError as error:
        return _unsafe("%s cannot be read: %s" % (path, error.strerror or error))
    finally:
        os.close(fd)


def _only_roots(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022


def _read(fd: int, path: str) -> Reading:
    seen = os.fstat(fd)
    if not stat.S_ISREG(seen.st_mode) or seen.st_uid != 0 or seen.st_mode & 0o077 or seen.st_nlink != 1:
        return _unsafe(
            "%s has mode %o, owner %d and %d names" % (path, stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_nlink)
        )
    data = b""
    while len(data) <= SIZE_CAP:
        part = os.read(fd, SIZE_CAP + 1 - len(data))
        if not part:
            break
        data += part
    return understood(data, seen.st_mtime)


def understood(data: bytes, changed_at: float = 0.0) -> Reading:
    """The policy in the bytes of a file; unknown or missing fields and wrong values make it invalid as a whole."""
    if len(data) > SIZE_CAP:
        return _invalid("it has more than %d bytes" % SIZE_CAP)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        return _invalid("it is not JSON: %s" % str(error)[:200])
    if not isinstance(value, dict):
        return _invalid("it is not a JSON object")
    policy, wrong = _policy(value)
    return _invalid(wrong) if wrong else Reading(policy, None, hashlib.sha256(data).hexdigest()[:16], changed_at)


def _policy(value: Dict[str, Any]) -> Tuple[Optional[Policy], str]:
    """The policy of a JSON object, or None and what is wrong with it."""
    wrong = [fault for fault in _faults(value) if fault]
    if wrong:
        return None, "; ".join(wrong)[:500]
    lists = {name: tuple(value[name]) for name in LISTS}
    return Policy(stop_guests=value["stop_guests"], **lists), ""


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field appears twice")
    return found


# A request (request.py) is held to the same patterns.
LVM_NAME = r"(?!\.{1,2}\Z)[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}"
ABSOLUTE = r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_+.@-]{1,200}){1,16}"
SHARE = r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]+\]):" + ABSOLUTE
_PATTERNS = {
    "roles": "|".join(ROLES),
    "volume_groups": LVM_NAME,
    "shares": SHARE,
    "directories": ABSOLUTE,
    "networks": r"[0-9A-Fa-f:.]+/[0-9]{1,3}",
    "seal_keys": r"[0-9a-f]{64}",
}


def _faults(value: Dict[str, Any]) -> Iterator[str]:
    unknown, absent = sorted(set(value) - set(FIELDS)), sorted(set(FIELDS) - set(value))
    yield "unknown fields: %s" % ", ".join(unknown) if unknown else ""
    yield "missing fields: %s" % ", ".join(absent) if absent else ""
    if "stop_guests" in value and not isinstance(value["stop_guests"], bool):
        yield "stop_guests is neither true nor false"
    for name in LISTS:
        yield _fault_of_list(name, value[name]) if name in value else ""


def _fault_of_list(name: str, value: Any) -> str:
    if not isinstance(value, list) or len(value) > (KEYS_CAP if name == "seal_keys" else LIST_CAP):
        return "%s is not a list, or too long" % name
    for each in value:
        if not isinstance(each, str) or re.match(r"(?:%s)\Z" % _PATTERNS[name], each) is None:
            # Never quoted: a key that is a digit short would be shown to whoever asks.
            return "%s has an entry that is not allowed there" % name
        if name == "networks" and not _is_network(each):
            return "networks: %s is not a network (an address with host bits, or no address)" % each
    return ""


def _is_network(text: str) -> bool:
    try:
        return ipaddress.ip_network(text) is not None
    except ValueError:
        return False


# Showing it


def report(reading: Reading) -> Dict[str, Any]:
    """The policy as hostctl answers it to volmig: everything but the keys, of which it gives fingerprints."""
    policy, fault = reading.policy, reading.fault
    shown: Dict[str, Any] = {"path": PATH, "hash": reading.hash, "changed_at": reading.changed_at}
    if policy is None:
        fault = fault or missing()
        return dict(shown, code=fault.code, found=fault.found, next=fault.next_step, policy=None, seal_keys=[])
    open_parts = {name: list(getattr(policy, name)) for name in LISTS if name != "seal_keys"}
    return dict(
        shown,
        code="",
        found="",
        next="",
        policy=dict(open_parts, stop_guests=policy.stop_guests),
        seal_keys=[fingerprint(key) for key in policy.seal_keys],
    )


def reported(answer: Any) -> Reading:
    """The reading that a report stands for, without its keys; for volmig, which compares plans with it."""
    shown = answer if isinstance(answer, dict) else {}
    found = shown.get("policy")
    if isinstance(found, dict):
        policy, wrong = _policy(dict(found, seal_keys=[]))
        return _invalid(wrong) if wrong else Reading(policy, None, str(shown.get("hash", "")))
    if shown.get("code"):
        return Reading(None, Objection(*(str(shown.get(name, "")) for name in ("code", "found", "next"))))
    return Reading(None, missing())


def fingerprint(key: str) -> str:
    """What a seal key (hex) is known by without being shown: 16 hex digits."""
    return hashlib.sha256(b"volmig seal key\0" + key.encode()).hexdigest()[:16]
