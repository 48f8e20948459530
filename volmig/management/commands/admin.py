"""manage.py admin: make a person who can log in, or give one a new password and roles."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from volmig import environment
from volmig.accounts.people import ask_password, make_person
from volmig.accounts.roles import ALLOWS


class Command(BaseCommand):
    help = "Creates an account, or changes its password and roles. Without --role: an administrator with every role."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--role", action="append", default=[], choices=sorted(ALLOWS), help="may be given again")

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError without a password, or with one that Django's validators refuse."""
        name = options["name"]
        try:
            make_person(name, environment.text("ADMIN_PASSWORD") or ask_password(name), options["role"])
        except EOFError as error:
            said = "No password was typed. Run it on a terminal, or set VOLMIG_ADMIN_PASSWORD for this one command."
            raise CommandError(said) from error
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        self.stdout.write(f"{name} can log in: {', '.join(options['role']) or 'every role'}.")
