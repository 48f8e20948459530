"""manage.py verify_audit: walk the record's hash chain."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from volmig.record.models import ChainHead, verify


class Command(BaseCommand):
    help = "Walks the record's hash chain; exits with 1 and says what is wrong when it was tampered with."

    def handle(self, *args: Any, **options: Any) -> None:
        faults = verify()
        if faults:
            raise CommandError("\n".join(faults))
        head = ChainHead.objects.filter(pk=1).first()
        self.stdout.write(f"The record is whole: {head.seq} events, head {head.hash}." if head else "No events yet.")
