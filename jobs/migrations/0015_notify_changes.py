"""PostgreSQL notifies web processes of what their pages show (jobs/web/changes.py).

Whoever changes the type of a column that is named here drops its trigger first and makes it again: PostgreSQL refuses
it otherwise. Rows of the past, as a restore or a seed writes them, notify nobody.
"""

from django.db import migrations

from volmig.online import AddTriggersOnline

NUMBERS = {"jobs_job": "NEW.id", "jobs_steprun": "NEW.job_id", "jobs_approval": "NEW.job_id"}
OF_DECISION = "(SELECT job_id FROM jobs_approval WHERE id = NEW.approval_id)"
JOB = "status outcome halt_reason waiting_for version rate cancel_requested_at facts_at"
MOVES = "bytes_done bytes_read bytes_written rate progress_at silent_since"
# name: (table, event, kind, condition)
TRIGGERS = {
    "jobs_job_made": ("jobs_job", "INSERT", "turned", "NEW.ended_at IS NULL"),
    "jobs_job_turned": ("jobs_job", "UPDATE", "turned", JOB),
    "jobs_run_begun": ("jobs_steprun", "INSERT", "turned", "NEW.ended_at IS NULL"),
    "jobs_run_turned": ("jobs_steprun", "UPDATE", "turned", "result ended_at"),
    "jobs_run_moved": ("jobs_steprun", "UPDATE", "moved", MOVES),
    "jobs_approval_made": ("jobs_approval", "INSERT", "turned", "NEW.voided_at IS NULL AND NEW.consumed_at IS NULL"),
    "jobs_approval_turned": ("jobs_approval", "UPDATE", "turned", "voided_at consumed_at expires_at approvers"),
    "jobs_decision_made": ("jobs_decision", "INSERT", "turned", "NEW.at > now() - interval '1 hour'"),
    "jobs_decision_turned": ("jobs_decision", "UPDATE", "turned", "verdict withdrawn_at"),
}


def function(table):
    number = NUMBERS.get(table, OF_DECISION)
    return (
        f"CREATE OR REPLACE FUNCTION {table}_notify() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_notify('volmig_jobs', TG_ARGV[0] || ' ' || {number}); RETURN NULL; END $$"
    )


def trigger(name):
    table, event, kind, when = TRIGGERS[name]
    if event == "UPDATE":
        columns = when.split()
        old, new = (", ".join(f"{row}.{column}" for column in columns) for row in ("OLD", "NEW"))
        when = f"({old}) IS DISTINCT FROM ({new})"
    return (
        f"CREATE OR REPLACE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW WHEN ({when})"
        f" EXECUTE FUNCTION {table}_notify('{kind}')"
    )


TABLES = sorted({table for table, *_ in TRIGGERS.values()})


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("jobs", "0014_history_online")]
    operations = [
        AddTriggersOnline(
            make=[*map(function, TABLES), *map(trigger, TRIGGERS)],
            drop=[
                *(f"DROP TRIGGER IF EXISTS {name} ON {table}" for name, (table, *_) in TRIGGERS.items()),
                *(f"DROP FUNCTION IF EXISTS {table}_notify()" for table in TABLES),
            ],
        )
    ]
