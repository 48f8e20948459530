"""manage.py adopt: compare migrations with their hosts while volmig is read-only, and take over what is confirmed."""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from hosts.models import Hypervisor
from hosts.remote.host import HostError
from jobs.models import Adoption, Refused
from jobs.worker import adopting
from jobs.worker.facts import Unheard
from volmig import incarnation


class Command(BaseCommand):
    help = (
        "Compares each migration with what its hypervisors report; adopts one; takes over a hypervisor; "
        "ends read-only mode."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--as", dest="person", default="", help="the administrator who confirms")
        one = parser.add_mutually_exclusive_group()
        one.add_argument("--migration", type=int, help="adopt this migration, as last shown")
        one.add_argument("--host", help="take this hypervisor over from another volmig")
        one.add_argument("--finish", action="store_true", help="end read-only mode")
        one.add_argument("--join", action="store_true", help="let this data directory join this database")

    def handle(self, *args: Any, **options: Any) -> None:
        """Without options it compares and shows; CommandError when nothing can be done."""
        state = incarnation.check()
        if state is None:
            self.stdout.write("volmig is not read-only: there is nothing to adopt.")
            return
        self.stdout.write(f"volmig is read-only since {state.since:%Y-%m-%d %H:%M}: {state.reason}\n")
        try:
            if options["join"]:
                self.join(state, options)
            elif options["migration"]:
                self.adopt(state, options["migration"], self.person(options))
            elif options["host"]:
                self.take(options["host"], self.person(options))
            elif options["finish"]:
                adopting.finish(self.person(options))
                self.stdout.write("volmig may act again.")
            else:
                adopting.compare()
                self.show(state)
        except (Refused, HostError, Unheard) as refused:
            raise CommandError(str(refused)) from refused

    def person(self, options: dict[str, Any]) -> Any:
        """The administrator who confirms; CommandError without --as or with an unknown name."""
        person = get_user_model().objects.filter(username=options["person"], is_active=True).first()
        if person is None:
            raise CommandError("Name the administrator who confirms this: --as NAME.")
        return person

    def typed(self, wanted: str, question: str) -> None:
        """CommandError unless the word is typed."""
        if input(f"{question} Type {wanted} to confirm: ").strip() != wanted:
            raise CommandError("Not confirmed; nothing was changed.")

    def show(self, state: incarnation.State) -> None:
        """Prints hypervisors and migrations as they were compared, and what is left to do."""
        rows = Adoption.objects.filter(episode=state.episode)
        for row in rows.exclude(hypervisor=None).select_related("hypervisor"):
            self.stdout.write(f"{row.hypervisor}: {row.trouble or row.words or 'nothing new'}")
        for row in rows.exclude(job=None).select_related("job__source", "job__relay", "job__destination"):
            self.show_one(row)
        self.show_unknown(state)
        self.show_next(state)

    def show_unknown(self, state: incarnation.State) -> None:
        """What hypervisors know and the database does not; volmig leaves it alone."""
        found = adopting.unknown(state.episode)
        if found:
            self.stdout.write("\nMigrations that the database does not have. volmig changes nothing about them.")
        for each in found:
            self.stdout.write(f"\n{each.uuid}{f' ({each.moves})' if each.moves else ''}")
            for name, said in each.hosts.items():
                self.stdout.write(f"  {name}: {reported(said)}")
            self.stdout.write(f"  {each.advice}")

    def show_next(self, state: incarnation.State) -> None:
        """The command that leads on from here, for whoever sees only what is printed."""
        left = [job.pk for job in adopting.concerned(state.episode) if not adopting.is_adopted(job, state.episode)]
        if state.is_local:
            said = "To let this data directory act, if it was moved or added: manage.py adopt --join --as NAME"
        elif left:
            said = f"{len(left)} left to adopt, one at a time: manage.py adopt --migration {left[0]} --as NAME"
        else:
            said = "No migration is left to adopt. To let volmig act again: manage.py adopt --finish --as NAME"
        self.stdout.write(f"\n{said}")

    def show_one(self, row: Adoption) -> None:
        """Prints what the database has of a migration, what each hypervisor reports, and the result of adoption."""
        job: Any = row.job
        self.stdout.write(f"\n{job}: the database says {job.words}.")
        for on, each in row.seen.items():
            self.stdout.write(f"  {adopting.label(job, on)}: {reported(each)}")
        verdict = "adopted" if row.adopted_at else row.trouble or f"after adoption {row.status}: {row.words}"
        self.stdout.write(f"  {verdict}")

    def adopt(self, state: incarnation.State, number: int, by: Any) -> None:
        """Adopts what was last shown; CommandError when it was not compared, or has changed."""
        row = Adoption.objects.filter(episode=state.episode, job=number).select_related("job").first()
        if row is None:
            raise CommandError("Compare first: manage.py adopt.")
        self.show_one(row)
        self.typed(str(number), "Take this migration over?")
        adopting.confirm(row, by, row.digest)  # and no worker: two that adopt at once shut each other out
        row.refresh_from_db()
        adopting.adopt(row)
        self.stdout.write(f"Migration {number} is adopted: {row.words}")

    def take(self, name: str, by: Any) -> None:
        """Takes a hypervisor over from another volmig, after its name was typed."""
        hypervisor = Hypervisor.objects.reachable().filter(name=name).first()
        if hypervisor is None:
            raise CommandError(f"volmig has no usable hypervisor {name}.")
        self.typed(name, f"Take {name} over from its current owner?")
        adopting.take_host(adopting.confirm_host(hypervisor, by, name), hypervisor)
        self.stdout.write(f"{name} belongs to this volmig.")

    def join(self, state: incarnation.State, options: dict[str, Any]) -> None:
        """Lets this data directory act beside others of the database."""
        if not state.is_local:
            raise CommandError("Only a data directory that was added or moved can join. Adopt the migrations instead.")
        by = self.person(options)
        self.typed("join", "Use this data directory with this database, and never again a copy of it elsewhere?")
        incarnation.join(by)
        if left := incarnation.check():
            raise CommandError(f"It stays read-only: {left.reason}")
        self.stdout.write("This data directory belongs to this database.")


def reported(said: Mapping[str, Any]) -> str:
    """What one host, or Nova, says of a migration, in a line."""
    if silent := said.get("silent"):
        return f"no response: {silent}"
    runs = said.get("runs") or []
    last = f", last {runs[-1]['step']} {runs[-1]['direction']} {runs[-1]['state']}" if runs else ""
    known = {"no": "has no data about it", "forgotten": "has removed its working data"}.get(said.get("known") or "", "")
    return ", ".join(each for each in (known, said.get("shown", ""), f"{len(runs)} steps{last}") if each)
