"""NFS on the relay (services, export) and on the source (mount), each proved by what is there afterwards."""

import os
from typing import Any, Dict, Iterable, List, Tuple

from . import commands, mountpoints
from .act import Act, Args, Failed, Refused, command, syscall
from .commands import Work, find
from .exports import EXPORTS, _text, exports, exports_file
from .store import sync_directory

# In the order in which they are started; stopped in reverse.
UNITS = ("rpcbind.socket", "rpcbind", "rpc-statd", "nfs-mountd", "nfs-server")
VERSIONS = "/proc/fs/nfsd/versions"
THREADS = "/proc/fs/nfsd/threads"


def export_options(args: Args) -> str:
    """Options of the export, exports(5): `mp` exports nothing when the filesystem is not mounted."""
    return "rw,sync,no_subtree_check,mp,fsid=%s,all_squash,anonuid=%s,anongid=%s" % (
        args["fs_uuid"],
        args["uid"],
        args["gid"],
    )


def export_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that start the server where needed and export the filesystem to one client."""
    mountpoint = args["mountpoint"]
    starts = tuple(command("systemctl", "start", "--", unit) for unit in ordered(args["start"]))
    return (
        *starts,
        syscall("chown %s:%s %s (mode 0700)" % (args["uid"], args["gid"], mountpoint)),
        syscall("write this export to %s, so that it lasts when others export anew" % exports_file(mountpoint)),
        command("exportfs", "-o", export_options(args), "%s:%s" % (args["client"], mountpoint)),
    )


def unexport_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that end the export and stop the units that the export started."""
    where = "%s:%s" % (args["client"], args["mountpoint"])
    started = args.get("made", {}).get("started", ())
    stops = tuple(command("systemctl", "stop", "--", unit) for unit in reversed(ordered(started)))
    unlink = syscall("unlink %s" % exports_file(args["mountpoint"]))
    return (unlink, command("exportfs", "-u", where), command("exportfs", "-f"), *stops)


def ordered(units: Iterable[str]) -> List[str]:
    """Units in starting order; a placeholder («…») stands for itself."""
    if isinstance(units, str):
        return [units]
    known = [unit for unit in UNITS if unit in units]
    return known + [unit for unit in units if unit not in UNITS]


def unit_state(work: Work, unit: str) -> str:
    """active, inactive, masked or missing; refuses when systemd does not say: what was started is stopped later."""
    shown = work.ask("systemctl", "show", "-p", "LoadState", "-p", "ActiveState", "--", unit).out
    facts = commands.export_format(shown)
    if not ("LoadState" in facts and "ActiveState" in facts):
        raise Refused(
            "probe-failed",
            "read %s from systemd" % unit,
            "it returned %.200r" % shown,
            "Run systemctl show on the host manually; resume when it responds.",
        )
    if facts.get("LoadState") != "loaded":
        return "masked" if facts.get("LoadState") == "masked" else "missing"
    return "active" if facts.get("ActiveState") in ("active", "activating") else "inactive"


def server(work: Work) -> Dict[str, str]:
    """State of each unit that serving NFSv3 needs."""
    return {unit: unit_state(work, unit) for unit in UNITS}


def export(work: Work) -> Dict[str, Any]:
    """Serve the job's filesystem to exactly one client; start what is missing and remember how it was found."""
    args = work.args
    mountpoints.check_target(args, work.job)
    own, record, offer = export_acts(args, work.job)[-3:]
    before = work.memory.recall("nfs").get("before") or server(work)
    work.memory.remember("nfs", before=before)
    # A host that lost its power still lists its exports, although nobody serves them.
    if _exported(work) and not _down(work):
        return dict(_exported_evidence(args, before), already=True)
    for start in export_acts(args, work.job)[:-3]:
        work.must(start, timeout=60)
    _check_serving(work)
    work.must(own, lambda: _own(args))
    work.do(record, lambda: _record(args))  # where /etc cannot be written, the export lasts until an exportfs -r
    output = work.do(offer)
    if not _exported(work):
        raise Failed("not-exported", offer.tried, output.said(), "Read exportfs's message in the log, then resume.")
    return _exported_evidence(args, before)


def _own(args: Args) -> None:
    os.chown(args["mountpoint"], args["uid"], args["gid"])
    os.chmod(args["mountpoint"], 0o700)


def _record(args: Args) -> None:
    """A file of this export's own: exportfs -r and a restart of the server read it, and find it in force."""
    path = exports_file(args["mountpoint"])
    part = "%s/.%s.part" % (EXPORTS, os.path.basename(path))
    os.makedirs(EXPORTS, 0o755, exist_ok=True)
    with open(part, "w") as file:
        file.write("%s %s(%s)\n" % (args["mountpoint"], args["client"], export_options(args)))
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, path)
    sync_directory(EXPORTS)


def _exported_evidence(args: Args, before: Dict[str, str]) -> Dict[str, Any]:
    started = [unit for unit in ordered(args["start"]) if before.get(unit) == "inactive"]
    return {"client": args["client"], "options": export_options(args), "started": started}


def _exported(work: Work) -> bool:
    """True when exported as planned; refuses an export of our path to anybody else or otherwise."""
    args, rows = work.args, [row for row in exports(work) if row.path == work.args["mountpoint"]]
    wanted = set(export_options(args).replace("mp,", "mountpoint,").split(","))
    if not rows:
        return False
    missing = wanted - set(rows[0].options)
    if len(rows) == 1 and rows[0].client == args["client"] and not missing:
        return True
    raise Refused(
        "foreign-export",
        "export %s to %s" % (args["mountpoint"], args["client"]),
        "it is exported as %s" % "; ".join("%s(%s)" % (row.client, ",".join(row.options)) for row in rows),
        "It was exported by someone else or with other options (missing: %s). Inspect it manually."
        % (", ".join(sorted(missing)) or "nothing"),
    )


def _down(work: Work) -> List[str]:
    """Units without which nothing is served and that do not run."""
    needed = ("rpcbind", "nfs-mountd", "nfs-server")
    return [unit for unit, state in server(work).items() if state != "active" and unit in needed]


def version_3(work: Work) -> str:
    """Why this host's NFS server does not serve version 3, or empty: nfs.conf(5) vers3, /proc/fs/nfsd/versions.

    Of a server that was stopped the kernel still says what it served; how it starts, its configuration says.
    """
    running = "" if _text(THREADS).strip() == "0" else _text(VERSIONS)
    if "-3" in running.split():
        return "%s says %s" % (VERSIONS, running.strip())
    if "+3" in running.split() or not find("nfsconf"):
        return ""
    said = work.ask("nfsconf", "--get", "nfsd", "vers3", good=None).out.strip()
    return "vers3=%s in nfs.conf" % said if said.lower() in ("n", "no", "0", "false", "off", "f") else ""


def _check_serving(work: Work) -> None:
    down = _down(work)
    if down:
        raise Failed(
            "nfs-not-running",
            "start the NFS server",
            "not active: %s" % ", ".join(down),
            "See journalctl -u nfs-server.",
        )


def unexport(work: Work) -> Dict[str, Any]:
    """Withdraw the export; stop what we started once nothing at all is exported any more.

    Only what this host itself remembers as inactive before is stopped: a request alone may not stop a site's services.
    """
    args, before, asked = work.args, work.memory.recall("nfs").get("before", {}), work.made.get("started")
    ours = [unit for unit in UNITS if before.get(unit) == "inactive"]
    work.learn(started=[unit for unit in ours if not isinstance(asked, list) or unit in asked])
    forget, withdraw, flush = unexport_acts(work.args, work.job)[:3]
    rows = [row for row in exports(work) if row.path == args["mountpoint"]]
    if any(row.client != args["client"] for row in rows):
        raise Refused(
            "foreign-export",
            "unexport %s" % args["mountpoint"],
            "it is exported to %s" % ", ".join(row.client for row in rows),
            "Someone else exported it too. Inspect it manually.",
        )
    path = exports_file(args["mountpoint"])
    had_file = os.path.lexists(path)
    if had_file:  # first: from here on nothing brings the export back
        work.must(forget, lambda: os.unlink(path))
    if rows:
        output = work.do(withdraw)
        work.do(flush)
        if any(row.path == args["mountpoint"] for row in exports(work)):
            raise Failed(
                "still-exported", withdraw.tried, output.said(), "Read exportfs's message in the log, then resume."
            )
    return dict(_stop_services(work), already=not rows and not had_file)


def _stop_services(work: Work) -> Dict[str, Any]:
    left = exports(work)
    stops = unexport_acts(work.args, work.job)[3:]
    if left or not stops:
        return {"stopped": [], "kept": ["%s to %s" % (row.path, row.client) for row in left]}
    for stop in stops:
        work.must(stop, timeout=60)
    units = [stop.argv[-1] for stop in stops]
    active = [unit for unit in units if unit_state(work, unit) == "active"]
    if active:
        raise Failed(
            "services-left",
            "stop the NFS server",
            "still active: %s" % ", ".join(active),
            "Stop them manually, then resume.",
        )
    return {"stopped": units, "kept": []}
