#!/usr/bin/env python3
"""volmig: the command-line client. One file, Python 3.8 or later, nothing else to install.

Address of volmig: VOLMIG_URL, or the file ~/.config/volmig/url. Your token: VOLMIG_TOKEN, or ~/.config/volmig/token,
which only you may be able to read. VOLMIG_CA_FILE: certificates to trust instead of the system's.
"""

import argparse
import http.client
import json
import os
import re
import ssl
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

CODES = {
    0: "done",
    1: "an error in the client or in volmig",
    2: "usage: the command line is invalid",
    3: "refused: the message says why; nothing was changed",
    4: "no token, or one that is not valid",
    5: "not found, or no access",
    6: "unreachable: volmig does not respond",
    7: "halted: the migration waits until a person decides",
    8: "undone: the migration ended before the swap or was rolled back; the instance has its old disk",
    9: "waiting: a person has to act",
    130: "ended by Ctrl-C; the migration continues",
}
FAULT, USAGE, REFUSED, TOKEN, NOT_FOUND, UNREACHABLE, HALTED, UNDONE, WAITING = range(1, 10)
STATUSES = (
    "checking", "planned", "preparing", "awaiting_approval", "approved", "swapping", "on_trial", "rolling_back",
    "undoing", "done", "rolled_back", "purging", "undone", "purged",
)  # fmt: skip
KEEPING = ("done", "rolled_back")  # ends, unless the purge is what one waits for
HOME = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "volmig"
MEANS = {401: TOKEN, 404: NOT_FOUND, 503: REFUSED}  # 503, said by volmig itself: it is read-only
Row = Dict[str, Any]


class Stop(Exception):  # noqa: N818 - what it does
    """Ends the program with a code and a sentence."""

    def __init__(self, code: int, sentence: str, told: Optional[Row] = None) -> None:
        self.code, self.sentence, self.told = code, sentence, told or {}
        super().__init__(sentence)


class Away(Stop):
    """volmig did not answer; trying again may help."""

    def __init__(self, sentence: str) -> None:
        super().__init__(UNREACHABLE, sentence)


# Talking to volmig


def token() -> str:
    """From the environment, or from a file that nobody else can read."""
    letters = os.environ.get("VOLMIG_TOKEN", "").strip() or kept(HOME / "token")
    if not re.fullmatch("[!-~]+", letters):  # else Python's complaint about the header would print it
        raise Stop(TOKEN, "This is not a token: a token is one word.")
    return letters


def kept(file: Path) -> str:
    """The token in a file; Stop when others can read the file, or there is none."""
    try:
        with file.open(errors="replace") as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise Stop(TOKEN, f"Others can read {file}: chmod 600 {file}")
            return opened.read().strip()
    except FileNotFoundError:
        raise Stop(TOKEN, f"No token: set VOLMIG_TOKEN, or write one to {file} (mode 0600).") from None
    except OSError as error:
        raise Stop(TOKEN, f"{file} cannot be read: {error.strerror}.") from None


def where() -> str:
    """The address of volmig without a path; Stop when none is set or it is malformed."""
    url = os.environ.get("VOLMIG_URL", "")
    if not url and (HOME / "url").is_file():
        url = (HOME / "url").read_text().strip()
    if not re.fullmatch(r"https?://(\[[\da-fA-F:]+\]|[\w.-]+)(:\d{1,5})?(/[!-~]*)?", url, re.ASCII):
        raise Stop(
            USAGE, f"No address of volmig: set VOLMIG_URL, such as https://volmig.example.org, or write {HOME}/url."
        )
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise Stop(USAGE, f"A token is not sent without encryption: {url} has to begin with https://")
    return url.rstrip("/")


def trusted() -> ssl.SSLContext:
    """The certificates to trust; Stop when VOLMIG_CA_FILE has none."""
    file = os.environ.get("VOLMIG_CA_FILE") or None
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise Stop(USAGE, f"VOLMIG_CA_FILE: {file} has no certificates to trust: {error.strerror or error}.") from None


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to the machine that it is for, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follows none: the token would go to another server."""
        return


class Answer(NamedTuple):
    """A response of the server."""

    status: int
    body: bytes
    headers: Any

    def json(self) -> Any:
        """The body as JSON; Stop when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Stop(FAULT, "The server there is not volmig, or its proxy is not working.") from None


class Server:
    """One volmig, and who asks it."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        self.opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trusted()), NoRedirect)

    def ask(self, method: str, path: str, sent: Optional[Row] = None, **headers: str) -> Answer:
        """One request; a refusal is raised as Stop, silence as Away."""
        named = {name.replace("_", "-"): value for name, value in headers.items() if value}
        named.update({"Authorization": "Bearer " + self.token, "Accept": "application/json"})
        data = None if sent is None else json.dumps(sent).encode()
        if data is not None:
            named["Content-Type"] = "application/json"
        address = self.url + (path if path.startswith("/api/") else "/api/v1" + path)
        request = urllib.request.Request(address, data, named, method=method)
        try:
            with self.opener.open(request, timeout=30) as response:
                return Answer(response.status, response.read(), response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return self.told(Answer(error.code, error.read(), error.headers))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Stop(UNREACHABLE, f"{self.url} cannot prove its identity: {reason.verify_message}.") from None
            raise Away(f"{self.url} does not respond: {reason}") from None
        except ValueError:
            raise Stop(USAGE, "A request key consists of letters, digits and punctuation, without spaces.") from None

    def told(self, answer: Answer) -> Answer:
        """What is no success: not modified is an answer, a problem is raised."""
        if answer.status == 304:
            return answer
        is_problem = "problem+json" in answer.headers.get("Content-Type", "")
        if answer.status in (502, 503, 504) and not is_problem:
            raise Away(f"{self.url} returned {answer.status}.")
        if not is_problem:
            raise Stop(FAULT, f"{self.url} returned {answer.status}, but not in volmig's format.")
        told = answer.json()
        code = MEANS.get(answer.status, FAULT if answer.status >= 500 else REFUSED)
        raise Stop(code, told["detail"], told)

    def get(self, path: str, **asked: Any) -> Any:
        """The document at a path; parameters without a value are left out."""
        query = urllib.parse.urlencode({name: value for name, value in asked.items() if value not in (None, "")})
        return self.ask("GET", path + ("?" + query if query else "")).json()

    def items(self, path: str, most: int, **asked: Any) -> List[Row]:
        """A list, page after page, up to so many."""
        page = self.get(path, **asked)
        found = list(page["items"])
        while page.get("next") and len(found) < most:
            page = self.get(page["next"])
            found += page["items"]
        return found[:most]

    def post(self, path: str, sent: Optional[Row] = None, **headers: str) -> Any:
        """Sends a document and returns the one that comes back."""
        return self.ask("POST", path, sent, **headers).json()

    def patiently(self, seconds: float, call: Callable[[], Answer]) -> Answer:
        """Asks again while nobody answers, for so long; only for what may be asked twice."""
        until, pause = time.monotonic() + seconds, 0.5
        while True:
            try:
                return call()
            except Away as away:
                if time.monotonic() + pause > until:
                    raise
                say(f"{away.sentence} Retrying.")
                time.sleep(pause)
                pause = min(pause * 2, 10)


# Showing


def say(sentence: str) -> None:
    """Writes a sentence to standard error, without control characters."""
    sys.stderr.write(clean(sentence) + "\n")


def clean(text: Any) -> str:
    """Names come from hypervisors: none of them may steer a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def size(count: Optional[float]) -> str:
    """Bytes in the largest binary unit below 1024; - for None."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(seconds: Optional[float]) -> str:
    """Seconds as people say them; - for None."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints rows under a heading, each column as wide as its widest cell."""
    cells = [[clean("-" if cell in (None, "") else cell) for cell in row] for row in rows]
    if not cells:
        say("None.")
        return
    widths = [max(len(row[column]) for row in [list(head), *cells]) for column in range(len(head))]
    for row in [[name.upper() for name in head], *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def show(args: argparse.Namespace, told: Any, people: Callable[[], Any]) -> None:
    """JSON for programs, `people` for people."""
    if args.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        people()


def one_job(job: Row, now: Row) -> None:
    """Prints a migration with its progress."""
    state = now.get("condition") or {"sentence": job["sentence"], "advice": "", "attention": False, "detail": ""}
    rows = [
        ("migration", job["number"]),
        ("status", job["status"] + (", halted" if job["halted"] else "")),
        ("", down(now) + state["sentence"] + (f" {state['advice']}" if state["attention"] else "")),
        ("from", "{hypervisor} {path}".format(**job["source"])),
        ("through", "{hypervisor} {path}".format(**job["relay"])),
        (
            "to",
            "{} {} {} on {}".format(
                job["instance_name"], job["instance_id"], job["disk"], job["destination"]["hypervisor"]
            ),
        ),
        ("size", size(job["size"])),
        ("ticket", job["ticket"] or "-"),
        ("asked by", job["requester"]),
    ]
    if state["detail"]:
        rows.append(("details", state["detail"]))
    if job["halt"]:
        rows.append(("next", job["halt"]["next"] or "see its page"))
    if job["approval"]:
        asked = job["approval"]
        rows.append(("asked", "{kind}: {consents} of {approvers} approvals, until {expires_at}".format(**asked)))
    for name, value in rows:
        print(f"{name:10} {clean(value)}".rstrip())
    for action in job["actions"]:
        if action["allowed"]:
            print("{:10} {}".format("you may", clean("{verb}: {does}".format(**action))))


# Commands


def hosts(server: Server, args: argparse.Namespace) -> int:
    """`volmig hosts`: hypervisors with their roles and free bytes."""
    found = server.items("/hypervisors", args.most, name=args.name)
    show(args, found, lambda: table(
        ["name", "state", "address", "fits as", "free in groups", "seen"],
        [
            [each["name"], each["state"], each["address"], ", ".join(each["fits_as"]),
             ", ".join("{} {}".format(group["name"], size(group["free"] - group["held"])) for group in each["volume_groups"]),
             each["seen_at"]]
            for each in found
        ],
    ))  # fmt: skip
    return 0


def hypervisor(server: Server, name: str) -> Row:
    """The hypervisor of that name; Stop when there is none."""
    found = server.items("/hypervisors", 1, name=name)
    if not found:
        raise Stop(NOT_FOUND, f"No hypervisor {name}, or you do not have access.")
    return found[0]


def volumes(server: Server, args: argparse.Namespace) -> int:
    """`volmig volumes`: logical volumes, of one hypervisor or by a part of their path."""
    if args.host:
        number = hypervisor(server, args.host)["id"]
        every = server.items(f"/hypervisors/{number}/volumes", sys.maxsize)
        found = [each for each in every if args.words in each["path"]][: args.most]
    else:
        found = server.items("/volumes", args.most, q=args.words)
    rows = [
        [each["hypervisor"], each["path"], size(each["size"]), "open" if each["is_open"] else "", each["lv_uuid"]]
        for each in found
    ]
    show(args, found, lambda: table(["hypervisor", "volume", "size", "use", "uuid"], rows))
    return 0


def instances(server: Server, args: argparse.Namespace) -> int:
    """`volmig instances`: instances and their disks on shares."""
    found = server.items("/servers", args.most, q=args.words)
    rows = [
        [
            each["name"],
            each["id"],
            each["status"],
            each["hypervisor"],
            each["project"],
            ", ".join(disk["name"] for disk in each["disks"]),
        ]
        for each in found
    ]
    show(args, found, lambda: table(["name", "id", "status", "hypervisor", "project", "disks on shares"], rows))
    return 0


def wish(args: argparse.Namespace) -> Row:
    """The request as the API takes it; rate in MiB/s, rollback in minutes."""
    names = (
        "source",
        "volume",
        "instance",
        "disk",
        "destination",
        "relay",
        "relay_vg",
        "ticket",
        "rate_mib",
        "rollback_minutes",
    )
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def asked(server: Server, args: argparse.Namespace, path: str, sent: Row) -> Row:
    """Sends it until it is answered: by its key, it makes one migration however often it arrives."""
    key = args.key or str(uuid.uuid4())
    job: Row = server.patiently(args.patience, lambda: server.ask("POST", path, sent, Idempotency_Key=key)).json()
    return job


def submit(server: Server, args: argparse.Namespace) -> int:
    """`volmig submit`: creates a migration, and watches it with --watch."""
    job = asked(server, args, "/jobs", {**wish(args), "start": not args.no_start})
    if args.watch:
        say(f"Migration {job['number']}.")
        args.number = job["number"]
        return watch(server, args)
    show(args, job, lambda: one_job(job, {}))
    return 0


def preflight(server: Server, args: argparse.Namespace) -> int:
    """Checks and plans on the hypervisors themselves, then lets go of everything unless it is to be kept."""
    job = asked(server, args, "/preflight", wish(args))
    number = job["number"]
    say(f"Migration {number} is being checked; it reserves its volume and its instance until it is cancelled.")
    job = outlast(server, args, number, {"checking"})
    made = server.get(f"/jobs/{number}/plan")
    good = job["status"] == "planned"
    if good and not args.keep:
        server.post(f"/jobs/{number}/cancel")
        job = outlast(server, args, number, {"planned", "undoing"})
    show(args, {"job": job, "plan": made}, lambda: print_plan(made))
    if good:
        say(
            f"All checks passed. Migration {number} is "
            + ("planned: start or cancel it." if args.keep else "cancelled.")
        )
        return 0
    say(job["sentence"])
    return HALTED if job["halted"] else UNDONE


def outlast(server: Server, args: argparse.Namespace, number: int, statuses: Iterable[str]) -> Row:
    """The migration once it is in none of these statuses any more, or halted."""
    while True:
        job: Row = server.patiently(args.patience, lambda: server.ask("GET", f"/jobs/{number}")).json()
        if job["status"] not in statuses or job["halted"]:
            return job
        time.sleep(args.every)


def print_plan(made: Row) -> None:
    """Prints checks, steps and commands."""
    marks = {"blocks": "STOP", "warns": "warn", "informs": "info"}
    table(
        ["", "check"],
        [["ok" if each["ok"] else marks.get(each["severity"], "?"), each["sentence"]] for each in made["checks"]],
    )
    if made["steps"]:
        print()
        table(
            ["phase", "step", "on", "about"],
            [[each["phase"], each["title"], each["hypervisor"], span(each["seconds"][1])] for each in made["steps"]],
        )


def bar(now: Row, width: int = 16) -> str:
    """One line of progress; the condition's sentence when nothing moves."""
    run, state = now["running"], now.get("condition")  # which a volmig before it does not send
    if state and state["kind"] != "running":
        return down(now) + str(state["sentence"]) + (f" {state['advice']}" if state["attention"] else "")
    if not run:
        return str(now["sentence"])
    if not run["bytes_total"]:
        return down(now) + f"{run['name']} on {run['hypervisor']}"
    part = min(run["bytes_done"] / run["bytes_total"], 1)
    full = "#" * int(part * width)
    rate = f"{size(run['rate'])}/s" if run["rate"] else "no rate yet"
    left = f"{span(run['seconds_left'])} left" if run["seconds_left"] is not None else "time left not known"
    return f"{run['name']:8} [{full.ljust(width, '.')}] {part:6.1%} of {size(run['bytes_total'])}, {rate}, {left}"


def down(now: Row) -> str:
    """Since when the instance is down, and for how long that was forecast."""
    found = now.get("down")
    if not found or found["until"]:
        return ""
    most = f", forecast at most {span(found['forecast'][2])}" if found["forecast"] else ""
    return f"DOWN since {found['since'][11:19]}{'' if found['certain'] else ' perhaps'}{most}: "


def over(now: Row, until: str) -> Optional[int]:
    """The code to end with, or None while it goes on."""
    if now["halted"]:
        return HALTED
    status = now["status"]
    if status == until:
        return 0
    if status in KEEPING and until in ("purging", "purged"):
        return None
    if status in ("undone", "purged", *KEEPING):
        return 0 if status == "done" or now["outcome"] == "done" else UNDONE
    return WAITING if now["wants"] and not until else None


def look(server: Server, args: argparse.Namespace, tag: str) -> Answer:
    """The progress, or 304 when its ETag is still `tag`; retries for --patience seconds."""
    path = f"/jobs/{args.number}/progress"
    return server.patiently(args.patience, lambda: server.ask("GET", path, If_None_Match=tag))


def watch(server: Server, args: argparse.Namespace) -> int:
    """Only looks: whoever ends it, the migration goes on."""
    last, shown, tag = "", "", ""
    live = sys.stderr.isatty() and not args.json
    now: Row = {}
    while True:
        answer = look(server, args, tag)
        if answer.status == 200:
            now, tag = answer.json(), answer.headers.get("ETag", "")
            if args.json:
                print(json.dumps(now, ensure_ascii=False), flush=True)
            shown, last = told(now, live, shown, last)
        code = over(now, args.until)
        if code is not None:
            if live and shown:
                sys.stderr.write("\n")
            say(now["sentence"])
            return code
        time.sleep(args.every)


def told(now: Row, live: bool, shown: str, last: str) -> Tuple[str, str]:
    """Shows one state: on a terminal in one line that moves, else a line for each step."""
    step = now["running"]["name"] if now["running"] else now["status"]
    line = clean(bar(now))
    if live:
        sys.stderr.write("\r\033[K" + line[: max(20, columns() - 1)])
        sys.stderr.flush()
    elif step != last:
        say(f"{now['status']}: {line}")
    return line, step


def columns() -> int:
    """Width of the terminal, 80 when it is unknown."""
    try:
        return os.get_terminal_size(2).columns or 80  # a serial console does not know
    except OSError:
        return 80


def job(server: Server, args: argparse.Namespace) -> int:
    """`volmig job`: one migration."""
    found = server.get(f"/jobs/{args.number}")
    show(args, found, lambda: one_job(found, server.get(f"/jobs/{args.number}/progress")))
    return 0


def approve(server: Server, args: argparse.Namespace) -> int:
    """Shows what a yes stands on, and consents to exactly that."""
    found = server.get(f"/jobs/{args.number}")
    if not found["approval"]:
        raise Stop(REFUSED, "No approval is requested for this migration.")
    asked = server.get(f"/approvals/{found['approval']['id']}")
    if args.digest and asked["digest"] != args.digest:
        raise Stop(REFUSED, "The request is not the one that --digest names; review it again.")
    if not args.json:
        review(asked)
    tail = args.instance or typed(args, "Last six characters of the instance's id: ")
    sent = {"digest": asked["digest"], "instance": tail, "reason": reason(args), "kind": asked["kind"]}
    after = server.post(f"/jobs/{args.number}/approve", sent)
    show(args, after, lambda: print(clean(after["sentence"])))
    return 0


def review(asked: Row) -> None:
    """Prints what an approval binds."""
    print(clean(asked["question"]))
    rows = [("when", [asked["when"]]), ("if it goes wrong", [asked["if_wrong"]]), ("proved", asked["proofs"])]
    rows += [("NOT PROVED", asked["unproved"]), ("warning", asked["warnings"]), ("differs", asked["differs"])]
    for name, sentences in [*rows, ("runs", asked["commands"]), ("digest", [asked["digest"]])]:
        for sentence in sentences:
            print(f"  {name:17} {clean(sentence)}")


def typed(args: argparse.Namespace, question: str) -> str:
    """A line from the terminal; Stop without one, and with --json."""
    if args.json or not sys.stdin.isatty():
        raise Stop(USAGE, "Without a terminal, --instance and --reason are required.")
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def reason(args: argparse.Namespace) -> str:
    """The reason from the command line or the terminal."""
    return args.reason or typed(args, "Reason, for the audit log: ")


def reject(server: Server, args: argparse.Namespace) -> int:
    """`volmig reject`: needs a reason."""
    return verb(server, args, "reject", {"reason": reason(args)})


def withdraw(server: Server, args: argparse.Namespace) -> int:
    """`volmig withdraw`: takes one's own decision back."""
    return verb(server, args, "withdraw", {"reason": reason(args)})


def rollback(server: Server, args: argparse.Namespace) -> int:
    """`volmig rollback`: requests one, or uses the pre-approved one with --now."""
    return verb(server, args, "rollback", {"now": args.now})


def plain(name: str) -> Callable[[Server, argparse.Namespace], int]:
    """A command that only sends a verb."""
    return lambda server, args: verb(server, args, name)


def verb(server: Server, args: argparse.Namespace, name: str, sent: Optional[Row] = None) -> int:
    """Sends a verb of a migration and prints where it is then."""
    after = server.post(f"/jobs/{args.number}/{name}", sent)
    show(args, after, lambda: print(clean(after["sentence"])))
    return 0


def history(server: Server, args: argparse.Namespace) -> int:
    """`volmig history`: migrations with the filters of the page."""
    names = ("host", "person", "status", "since", "until", "sort")
    asked = {name: getattr(args, name) for name in names}
    found = server.items("/jobs", args.most, q=args.words, limit=min(args.most, 200), **asked)
    rows = [[each["number"], each["status"] + (" HALTED" if each["halted"] else ""), each["outcome"], each["instance_name"], each["disk"],
             size(each["size"]), each["source"]["hypervisor"], each["destination"]["hypervisor"], each["requester"], each["created_at"][:16]]
            for each in found]  # fmt: skip
    show(
        args,
        found,
        lambda: table(["no", "status", "outcome", "instance", "disk", "size", "from", "to", "by", "asked"], rows),
    )
    return 0


def events(server: Server, args: argparse.Namespace) -> int:
    """`volmig events`: the audit log, or one migration's events."""
    path = f"/jobs/{args.number}/events" if args.number else "/events"
    found = server.items(path, args.most)
    rows = [[each["seq"], each["at"][:19], each["actor"], each["action"], each["object"]] for each in found]
    show(args, found, lambda: table(["no", "at", "who", "what", "on"], rows))
    return 0


def evidence(server: Server, args: argparse.Namespace) -> int:
    """`volmig evidence`: writes the archive; a file that exists is never overwritten."""
    file = Path(args.output or f"volmig-migration-{args.number}.zip")
    if file.exists():
        raise Stop(USAGE, f"{file} already exists.")
    body = server.ask("GET", f"/jobs/{args.number}/evidence").body
    part = file.with_name(file.name + ".part")
    part.write_bytes(body)
    part.replace(file)
    show(args, {"file": str(file), "bytes": len(body)}, lambda: print(f"{file}: {size(len(body))}"))
    return 0


def leftovers(server: Server, args: argparse.Namespace) -> int:
    """`volmig leftovers`: drift, after a scan with --scan."""
    if args.scan:
        say(server.post("/leftovers/scan")["detail"])
    page = server.get("/leftovers", all="true" if args.all else "")
    found = page["items"]
    rows = [[each["verdict"], each["kind"], each["place"], each["name"], each["number"], size(each["size"]), each["why_kept"] or "may be removed"]
            for each in found]  # fmt: skip
    show(args, page, lambda: table(["verdict", "kind", "on", "name", "migration", "size", ""], rows))
    return 0


def whoami(server: Server, args: argparse.Namespace) -> int:
    """`volmig whoami`: the token's owner and scope."""
    me = server.get("/me")
    show(
        args,
        me,
        lambda: print(
            clean(
                "{person}, by the token “{token}” until {expires_at}; it may {0}".format(", ".join(me["scope"]), **me)
            )
        ),
    )
    return 0


def completion(server: Any, args: argparse.Namespace) -> int:
    """For bash: eval "$(volmig completion)"."""
    words = {name: " ".join(sorted(options(each))) for name, each in commands().items()}
    cases = "\n".join(f'    {name}) words="{flags}" ;;' for name, flags in words.items())
    print(SCRIPT.format(commands=" ".join(words), cases=cases))
    return 0


SCRIPT = """_volmig() {{
  local words current=${{COMP_WORDS[COMP_CWORD]}}
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; fi
  COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -F _volmig volmig"""


# The command line


class Parser(argparse.ArgumentParser):
    """A parser that ends with the client's own exit code for usage."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and ends with 2."""
        self.print_usage(sys.stderr)
        raise SystemExit(self.exit(USAGE, f"volmig: {message}\n"))


def numbered(parser: argparse.ArgumentParser) -> None:
    """Adds the migration's number."""
    parser.add_argument("number", type=int, help="the migration's number")


def listed(parser: argparse.ArgumentParser, most: int = 100) -> None:
    """Adds --most."""
    parser.add_argument("--most", type=int, default=most, help="maximum number")


def patient(parser: argparse.ArgumentParser) -> None:
    """Adds --patience, in seconds."""
    parser.add_argument(
        "--patience",
        type=float,
        default=60,
        metavar="SECONDS",
        help="how long to retry when volmig does not respond",
    )
    parser.add_argument("--every", type=float, default=2, metavar="SECONDS", help="polling interval")


def wishing(parser: argparse.ArgumentParser) -> None:
    """Adds the two ends and the options of a migration."""
    parser.add_argument("--source", required=True, metavar="HYPERVISOR")
    parser.add_argument("--volume", required=True, metavar="VG/LV")
    parser.add_argument("--instance", required=True, metavar="UUID", help="whose disk is replaced")
    parser.add_argument("--disk", help="which of its disks (disk.local)")
    parser.add_argument("--destination", metavar="HYPERVISOR", help="only when several have the instance")
    parser.add_argument("--relay", required=True, metavar="HYPERVISOR")
    parser.add_argument("--relay-vg", required=True, metavar="VG")
    parser.add_argument("--ticket")
    parser.add_argument("--rate", dest="rate_mib", type=float, metavar="MIB", help="limit in MiB/s")
    parser.add_argument("--rollback-minutes", type=int, metavar="N", help="pre-approved rollback window")
    parser.add_argument("--key", help="one migration for this key, however often it is submitted")
    patient(parser)


def until(parser: argparse.ArgumentParser) -> None:
    """Adds --until, a status."""
    words = "keep watching past approval requests, until this status: " + ", ".join(STATUSES)
    parser.add_argument("--until", default="", choices=STATUSES, metavar="STATUS", help=words)


def reasoned(parser: argparse.ArgumentParser) -> None:
    """Adds the number and --reason."""
    numbered(parser)
    parser.add_argument("--reason", help="for the audit log")


def build() -> argparse.ArgumentParser:
    """The parser with all commands; `parts` has the parser of each."""
    codes = "\n".join(f"  {code}  {means}" for code, means in CODES.items())
    parser = Parser(
        prog="volmig",
        description=__doc__,
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version="volmig client, API v1")
    parts = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, words, *shapes) in COMMANDS.items():
        each = parts.add_parser(name, help=words, description=words)
        each.add_argument("--json", action="store_true", help="for programs")
        for shape in shapes:
            shape(each)
        each.set_defaults(run=run)
    parser.parts = parts.choices  # type: ignore[attr-defined]
    return parser


def commands() -> Dict[str, argparse.ArgumentParser]:
    """The parsers of all commands, for the reference and the completion."""
    return build().parts  # type: ignore[attr-defined,no-any-return]


def options(parser: argparse.ArgumentParser) -> List[str]:
    """The long options of a command."""
    return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]


def words_of(parser: argparse.ArgumentParser) -> None:
    """Adds search words and --most."""
    parser.add_argument("words", nargs="?", default="", help="search terms")
    listed(parser)


def with_flag(flag: str, words: str, **more: Any) -> Callable[[argparse.ArgumentParser], None]:
    """What adds one option to a command."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(flag, help=words, **(more or {"action": "store_true"}))

    return add


def filters(parser: argparse.ArgumentParser) -> None:
    """Adds the filters of the history."""
    for name in ("host", "person", "status", "since", "until", "sort"):
        parser.add_argument("--" + name, default="")


COMMANDS: Dict[str, Tuple[Any, ...]] = {
    "whoami": (whoami, "show the token's owner and scope"),
    "hosts": (hosts, "hypervisors", with_flag("--name", "only this one", default=""), listed),
    "volumes": (volumes, "logical volumes", with_flag("--host", "of this hypervisor", default=""), words_of),
    "instances": (instances, "instances by name, id, project or address", words_of),
    "preflight": (preflight, "check and plan on the hypervisors, without running", wishing, with_flag("--keep", "keep the plan")),
    "submit": (submit, "request a migration", wishing, with_flag("--no-start", "check and plan only"), with_flag("--watch", "then watch it"), until),
    "show": (job, "one migration", numbered),
    "watch": (watch, "follow a migration until a person is needed or it ends", numbered, until, patient),
    "approve": (approve, "approve the open request", reasoned, with_flag("--instance", "last six characters of the instance's id", metavar="TAIL"),
                with_flag("--digest", "only if the request has this digest", metavar="SHA256")),
    "reject": (reject, "reject the open request", reasoned),
    "withdraw": (withdraw, "withdraw your approval", reasoned),
    "start": (plain("start"), "start a planned migration", numbered),
    "cancel": (plain("cancel"), "stop at the next safe point and remove everything created", numbered),
    "resume": (plain("resume"), "resume a halted migration", numbered),
    "try-again": (plain("try-again"), "retry now", numbered),
    "confirm": (plain("confirm"), "confirm the instance's data", numbered),
    "rollback": (rollback, "request a rollback", numbered, with_flag("--now", "use the pre-approved one")),
    "purge": (plain("purge"), "request the purge of the unused disk", numbered),
    "rehearse": (plain("rehearse"), "rehearse the backup", numbered),
    "history": (history, "migrations", words_of, filters),
    "events": (events, "the audit log, or one migration's events", with_flag("--number", "of this migration", type=int, metavar="N"), listed),
    "evidence": (evidence, "a migration's evidence as an archive", numbered, with_flag("--output", "the file", metavar="FILE")),
    "leftovers": (leftovers, "leftovers on hypervisors", with_flag("--all", "also what is in use"), with_flag("--scan", "scan all hypervisors")),
    "completion": (completion, 'for bash: eval "$(volmig completion)"'),
}  # fmt: skip


def main(words: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns its exit status, see CODES."""
    args = build().parse_args(words)
    try:
        server = None if args.run is completion else Server(where(), token())
        code: int = args.run(server, args)
        sys.stdout.flush()
        return code
    except Stop as stop:
        if args.json and stop.told:
            print(json.dumps(stop.told, indent=1, ensure_ascii=False))
        else:
            say(f"volmig: {stop.sentence}")
        return stop.code
    except KeyboardInterrupt:
        say("")
        return 130
    except BrokenPipeError:  # whoever read this has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # a file that cannot be written
        say(f"volmig: {error}")
        return FAULT


if __name__ == "__main__":
    sys.exit(main())
