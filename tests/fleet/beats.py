"""Heartbeats as rows."""

import datetime as dt
import uuid

from django.utils import timezone

from volmig.health.models import Process

GIB = 1 << 30


def a_process(part, machine="m1", age=0, **fields):
    """A process whose last heartbeat is so many seconds old; its machine is none that the test runs on."""
    values = {
        "name": uuid.uuid4().hex,
        "machine": machine,
        "pid_space": machine,
        "part": part,
        "pid": 7,
        "version": "0.1.0",
        "beaten_at": timezone.now() - dt.timedelta(seconds=age),
        "skew": 0.0,
        "disk_free": 50 * GIB,
        "disk_size": 100 * GIB,
        **fields,
    }
    return Process.objects.create(**values)
