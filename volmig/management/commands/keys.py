"""manage.py keys: compares this machine's keys with those that the database knows; registers or renews one."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, transaction

from volmig import data_dir, keys
from volmig.logs import plain
from volmig.models import RegisteredKey
from volmig.record import key_file
from volmig.record.models import Event

# What is lost with a key that is replaced by a new one.
COSTS = {
    "secret_key": "Everyone is logged out, and recovery codes of second factors no longer work.",
    "factor_key": "Second factors can no longer be read: remove each on its account's page.",
    "seal_key": "Hypervisors refuse every seal until each has a new policy (its page, Show the policy).",
    "worker_key": "Nothing is lost.",
    "ssh_key": "volmig cannot log in to any hypervisor until the new public key is installed there.",
    "audit_key": "verify_audit will report every event up to now, because it can no longer verify their signatures.",
    "evidence_key": "Who verifies evidence needs the new public key. If the key is not lost, use rotate_evidence_key.",
    "sealing_keys": "Enter the credential of every cloud again. If the file is not lost, use rotate_secrets.",
}


class Command(BaseCommand):
    help = (
        "Compares the keys of this machine with those that its database knows; exits with 1 when they differ. "
        "A replacement that was interrupted is completed, or removed if it was not registered. "
        "--register NAME makes the key on this machine the right one from now on; --renew NAME makes a new key."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        one = parser.add_mutually_exclusive_group()
        one.add_argument("--register", metavar="NAME", choices=data_dir.KEYS, help="a key replaced on this machine")
        one.add_argument(
            "--renew", metavar="NAME", choices=data_dir.KEYS, help="a key that is lost, or known to others"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Compares, completes, registers or renews; exits with 1 when keys differ."""
        if name := options["register"] or options["renew"]:
            self.replace(name, renew=bool(options["renew"]))
            return
        if not keys.are_kept():
            raise CommandError("This database knows no keys yet: run manage.py prepare (or up), which registers them.")
        rows = {row.name: row for row in RegisteredKey.objects.all()}
        for name in keys.mine_here():
            self.settle(name)
            row = rows.get(name)
            known = (
                f"registered by {plain(row.host)}, {row.registered_at:%Y-%m-%d %H:%M} UTC"
                if row
                else "not registered yet"
            )
            self.stdout.write(f"{name}: {data_dir.kept_at(name)}, {known}")
        absent = keys.not_here(rows)
        for kind, names in absent.items():
            those = keys.CANNOT_RUN[kind].capitalize()
            self.stdout.write(f"Not here, or not readable: {', '.join(names)}. {those} cannot run here.")
        differing = keys.mismatches()
        for line in keys.differing_settings():
            self.stdout.write(line)
        if differing:
            raise CommandError("\n".join(differing))
        if len(absent) == len(keys.CANNOT_RUN):
            raise CommandError("No part of volmig can run on this machine: copy the keys that it needs from another.")
        self.stdout.write("The keys of this machine are those of its database.")

    def settle(self, name: str) -> None:
        """Ends a replacement that was interrupted."""
        path = data_dir.key_path(name)
        if not data_dir.next_to(path).exists():
            return
        try:
            with keys.alone(path.parent):
                done = keys.settle(name)
        except (OSError, keys.Unsettled) as error:
            raise CommandError(str(error)) from error
        if done:
            self.stdout.write(done)
            if name in keys.SETTINGS and (content := data_dir.key(name)):  # they were read before
                setattr(settings, keys.SETTINGS[name], content.decode().strip())

    def replace(self, name: str, renew: bool) -> None:
        """Registers or renews a key after its name was typed; CommandError without."""
        self.stdout.write(f"{COSTS[name]} Stop all of volmig first, on every machine.")
        verb = "Make a new" if renew else "Register this machine's"
        if input(f"{verb} {name}? Type {name} to confirm: ").strip() != name:
            raise CommandError("Not confirmed; nothing was changed.")
        path = data_dir.key_path(name)
        if renew and data_dir.is_given(name):
            said = f"{path} is a file that volmig does not write (VOLMIG_{data_dir.variable(name)})"
            raise CommandError(f"{said}: replace it, then run manage.py keys --register {name}.")
        try:
            if renew:
                keys.replace(name, lambda: self.renewed(name), lambda before, after: self.note(name, before, after))
            else:
                with transaction.atomic():
                    self.note(name, *keys.register(name))
        except (OSError, ValueError, keys.KeysDiffer, DatabaseError, InterfaceError) as error:
            raise CommandError(f"Nothing was changed: {error}.") from error
        except keys.Unsettled as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{name} is registered. Copy {path} to every other machine that needs it, then start them.")

    def renewed(self, name: str) -> bytes:
        """The bytes of a new key."""
        return key_file.first() if name == data_dir.EVIDENCE_KEY else data_dir.new(name)

    def note(self, name: str, before: str, after: str) -> None:
        """An event with the beginnings of both fingerprints; a new audit key starts a new chain and has none."""
        if name != data_dir.AUDIT_KEY:
            Event.append("keys.register", object=name, data={"before": before[:16], "after": after[:16]})
