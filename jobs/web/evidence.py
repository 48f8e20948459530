"""A migration's evidence as one archive: what was asked, decided, run and measured, with the record's proof of it.

The same rows and the same key give the same bytes, so two copies can be compared by their hash.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder

from hosts.remote.hostctl import source_hash
from jobs.models import Job
from volmig import verify_evidence
from volmig.record import heads, signing
from volmig.record.export import COLUMNS, json_line
from volmig.record.models import Event

README = """Evidence of migration {number} of volmig
========================================

job.json        what was requested, by whom, and the outcome
checks.json     what was checked before anything was created, and the findings
facts.json      what was read from the hypervisors when the plan was made
plan.json       every step with its commands, as they were shown
timeline.json   every attempt at a step: where, when, how long, with which result
commands.jsonl  every command that ran, one per line, with its exit status and output
evidence.json   what each step measured: identities, hashes, the output of compare and check
approvals.json  every approval request with what it binds, and who decided what, when and why
versions.json   the hostctl that the approval binds, and the hypervisors' tools
events.jsonl    the migration's events of the audit log, one per line, with their signatures
chain.json      the position of these events in the audit log, and for each the proof that a published head covers it
heads.jsonl     those heads: lines of the file of heads that volmig publishes, each signed
SHA256SUMS      the hashes of these files:  sha256sum -c SHA256SUMS
manifest.json   every file with its size and hash; manifest.sig is its signature
verify_evidence.py   checks all of this, without volmig and without a secret

How to check it without volmig
------------------------------
    python3 verify_evidence.py volmig-migration-{number}.zip --key keys.json

Take verify_evidence.py and keys.json from volmig itself (Audit, Verify evidence) or from a source that you trust, not
from here: whoever forges an archive can forge these as well. The program names every change to the archive, and which
events were published when. With --heads and --export it also shows whether events were left out. docs/evidence.md says
what can be concluded from it, and what cannot.

How to check it on volmig's server, with its key and its database
-----------------------------------------------------------------
    manage.py verify_audit                    the whole audit log is unchanged
    manage.py verify_audit --bundle FILE      the archive is unchanged, and its events are in the audit log

By hand, with the key alone (the file audit_key in volmig's data directory). An event's hash is the HMAC-SHA256, under
the key, of the hash of the event before it, a line feed, and the event as JSON with sorted keys and no spaces:

    import hashlib, hmac, json
    key = open("audit_key", "rb").read().strip()
    for line in open("events.jsonl"):
        event = json.loads(line)
        before, found = event.pop("prev_hash"), event.pop("hash")
        text = json.dumps(event, sort_keys=True, separators=(",", ":"))
        good = hmac.new(key, (before + "\\n" + text).encode(), hashlib.sha256).hexdigest() == found
        print(event["seq"], event["action"], "unchanged" if good else "CHANGED")

Between these are events of other migrations: "prev_hash" is the hash of the event with the number before, which need
not be in this archive.
"""


def archive(job: Job) -> bytes:
    """The whole archive, signed; a migration's evidence is a few megabytes.

    Without a key that can be read it is not signed, and says so in manifest.sig: it can be downloaded all the same.
    """
    files = {name: content.encode() for name, content in parts(job).items()}
    files["verify_evidence.py"] = Path(verify_evidence.__file__).read_bytes()
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    files["SHA256SUMS"] = sums.encode()
    subject = f"migration {job.pk}"
    try:
        key = signing.current()
    except (OSError, ValueError) as error:
        return verify_evidence.unsigned_archive(subject, files, f"This archive could not be signed: {error}")
    return verify_evidence.signed_archive(subject, files, key.id, key.sign)


def parts(job: Job) -> dict[str, str]:
    """The files by their names."""
    numbers = list(events(job).values_list("seq", flat=True))
    proofs, used, error = heads.proofs(Path(settings.AUDIT_HEADS), numbers)
    return {
        "README.txt": README.format(number=job.pk),
        "job.json": pretty(described(job)),
        "checks.json": pretty(job.checks),
        "facts.json": pretty({"read_at": job.facts_at, "facts": job.facts}),
        "plan.json": pretty(job.plan),
        "timeline.json": pretty([attempt(run) for run in job.runs.select_related("hypervisor")]),
        "commands.jsonl": lines(job.log()),
        "evidence.json": pretty([measured(run) for run in job.runs.select_related("hypervisor")]),
        "approvals.json": pretty([approval(asked) for asked in job.approvals.order_by("pk")]),
        "versions.json": pretty(versions(job)),
        "events.jsonl": "".join(json_line(row) for row in events(job).values_list(*COLUMNS)),
        "chain.json": pretty(chain(job, proofs, used, error)),
        "heads.jsonl": "".join(f"{head.line.decode()}\n" for head in used),
    }


def events(job: Job) -> Any:
    """The migration's events in order."""
    return Event.objects.of_job(job.pk).order_by("seq")


def described(job: Job) -> dict[str, Any]:
    """job.json: what was requested, by whom, and the outcome."""
    names = (
        "status",
        "outcome",
        "outcome_reason",
        "halt_reason",
        "halt_data",
        "created_at",
        "ended_at",
        "confirmed_at",
    )
    return {
        "number": job.pk,
        "uuid": job.uuid,
        "requester": job.requester.get_username(),
        "last_editor": job.last_editor.get_username(),
        "teams": sorted(team.name for team in job.teams()),
        "asked": job.asked(),
        "plan_version": job.version,
        "plan_sha256": job.digest,
        **{name: getattr(job, name) for name in names},
    }


def attempt(run: Any) -> dict[str, Any]:
    """A row of timeline.json; times in UTC, seconds, bytes."""
    names = ("step", "direction", "attempt", "lap", "started_at", "ended_at", "result", "error", "unit", "boot_id")
    figures = ("bytes_total", "bytes_read", "bytes_written")
    on = run.hypervisor.name if run.hypervisor else ""
    seconds = round((run.ended_at - run.started_at).total_seconds(), 3) if run.ended_at else None
    return {"hypervisor": on, "seconds": seconds, **{name: getattr(run, name) for name in (*names, *figures)}}


def measured(run: Any) -> dict[str, Any]:
    """A row of evidence.json."""
    where = {name: getattr(run, name) for name in ("step", "direction", "attempt", "result")}
    return {**where, "hypervisor": run.hypervisor.name if run.hypervisor else "", "evidence": run.evidence}


def approval(asked: Any) -> dict[str, Any]:
    """A row of approvals.json, with all that it binds and each decision."""
    names = ("kind", "version", "digest", "approvers", "created_at", "expires_at", "consumed_at", "voided_at")
    said = asked.decisions.select_related("person").order_by("pk")
    return {
        "number": asked.pk,
        "requester": asked.requester.get_username(),
        "last_editor": asked.last_editor.get_username(),
        "granted_by": asked.granted_by_id,
        "one_person_site": asked.is_one_persons(),
        **{name: getattr(asked, name) for name in (*names, "void_reason", "void_changes", "bound")},
        "decisions": [
            {"person": each.person.get_username()}
            | {name: getattr(each, name) for name in ("verdict", "reason", "at", "withdrawn_at")}
            for each in said
        ],
    }


def versions(job: Job) -> dict[str, Any]:
    """versions.json: hostctl and tools of the hypervisors."""
    bound = [asked.bound.get("hostctl") for asked in job.approvals.filter(kind="swap").order_by("pk")]
    hosts = {role: getattr(job, role) for role in ("source", "relay", "destination")}
    return {
        "hostctl_bound": [each for each in bound if each],
        "hostctl_of_this_volmig": source_hash(),
        "hypervisors": {
            role: {
                "name": host.name,
                "seen_at": host.seen_at,
                "hostctl": host.hostctl_hash,
                "tools": host.facts.get("tools"),
                "python": host.facts.get("python"),
            }
            for role, host in hosts.items()
        },
    }


def chain(job: Job, proofs: dict[str, Any], used: list[verify_evidence.Head], error: str) -> dict[str, Any]:
    """Where the events stand, the proof of each, and the first head that was published after them.

    All of it stays the same once that is published. `heads_error` says why no head could be read.
    """
    rows = list(events(job).values_list("seq", "prev_hash", "hash"))
    last = rows[-1][0] if rows else 0
    after = used[-1] if used and used[-1].seq >= last else None
    return {
        "events": [{"seq": seq, "prev_hash": before, "hash": found} for seq, before, found in rows],
        "proofs": proofs,
        "heads_error": error,
        "published_head": {"seq": after.seq, "hash": after.hash, "at": after.at} if after else None,
    }


def pretty(value: Any) -> str:
    """JSON that is the same for the same values."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, cls=DjangoJSONEncoder) + "\n"


def lines(values: Iterable[Any]) -> str:
    """JSON lines that are the same for the same values."""
    return "".join(
        json.dumps(each, sort_keys=True, ensure_ascii=False, cls=DjangoJSONEncoder) + "\n" for each in values
    )
