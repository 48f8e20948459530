"""Each alert rule fires on its condition, made of database rows and read through /metrics."""

import datetime as dt
import json
import re
from pathlib import Path

import pytest
import yaml
from django.conf import settings
from django.db import connection
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from hosts.models import Hypervisor
from jobs.models import Footprint, StepRun
from jobs.web import metrics
from tests.fleet.beats import GIB, a_process
from tests.fleet.promtool import COUNTER, ask, fires
from tests.pages import scenes
from volmig import incarnation
from volmig.health import tallies
from volmig.health.models import Process
from volmig.models import Notice, QueuedTask
from volmig.record.models import Event

MONITORING = Path(settings.BASE_DIR) / "docs/monitoring"
RULES = MONITORING / "volmig-alerts.yaml"
DASHBOARD = MONITORING / "volmig-dashboard.json"
BY_NAME = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
UNITS = {"s": 1 / 60, "m": 1, "h": 60, "d": 1440}


def ago(seconds):
    return timezone.now() - dt.timedelta(seconds=seconds)


def scrape():
    """What /metrics answers now, by series."""
    found = {'up{job="volmig"}': 1.0}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def shut_off(dana, status, **changed):
    """A migration whose instance is shut off since long ago."""
    job = scenes.job(dana, status, **changed)
    StepRun.objects.filter(job=job, step="start").delete()
    evidence = {"was": "running", "stopped_at": ago(900).timestamp()}
    StepRun.objects.filter(job=job, step="stop").update(evidence=evidence, started_at=ago(910), ended_at=ago(897))
    return job


def halted_while_down(dana):
    shut_off(dana, "swapping", halt_reason="Another inode lies there.")


def late(dana):
    shut_off(dana, "swapping")


def without(part):
    return lambda dana: Process.objects.filter(part=part).delete()


def waiting(queue, name, seconds, number=1):
    return lambda dana: QueuedTask.objects.bulk_create(
        [QueuedTask(queue=queue, name=name, number=7, queued_at=ago(seconds)) for _ in range(number)]
    )


def slow_ticks(dana):
    for _ in range(20):
        tallies.record("volmig_tick_seconds", 9.0, status="preparing")


def ssh_fails(dana):
    for outcome, number in (("ok", 3), ("unreachable", 2)):
        for _ in range(number):
            tallies.record("volmig_ssh_connects", outcome=outcome)


def hypervisor(**values):
    return lambda dana: Hypervisor.objects.filter(name="jump-02").update(**values)


def still(dana):
    job = scenes.job(dana, "preparing")
    StepRun.objects.filter(job=job, ended_at=None).update(progress_at=ago(600))


def leases_lost(dana):
    for _ in range(90):
        tallies.record("volmig_watcher_leases_lost")


def busy(dana):
    tallies.write(dict.fromkeys(tallies.keys("volmig_unavailable_answers", {"reason": "busy"}), 300.0))


def slow_log(dana):
    for _ in range(5):
        tallies.record("volmig_audit_lock_wait_seconds", 0.9)


def long_downtimes(dana):
    for _ in range(5):
        tallies.record("volmig_downtime_seconds", 1500.0)


def no_head(dana):
    Event.append("test.event")
    with connection.cursor() as cursor:  # the audit log refuses changes, by triggers
        from volmig.record.apps import drop_triggers, make_triggers

        drop_triggers()
        cursor.execute("UPDATE record_event SET at = %s", [ago(4000)])
        make_triggers()


def notice_fails(dana):
    Notice.objects.create(kind="halted", subject="s", text="t", error="post: refused")


def kept_too_long(dana):
    job = scenes.job(dana, "done")
    kept = {"kind": "backup", "state": "present", "name": "disk.old", "keep_until": ago(60)}
    Footprint.objects.create(job=job, hypervisor=job.destination, **kept)


def many_connections(dana):
    """SQLite has none: PostgreSQL alone reports these two figures (see test_metrics)."""
    return {"volmig_database_connections": 90.0, "volmig_database_connections_limit": 97.0}


CASES = {
    "VolmigMetricsMissing": lambda dana: {'up{job="volmig"}': 0.0},
    "VolmigInstanceDownAndStuck": halted_while_down,
    "VolmigInstanceDownTooLong": late,
    "VolmigNoWorkers": without("workers"),
    "VolmigNoWatcher": without("watcher"),
    "VolmigNoBackgroundWorkers": without("background"),
    "VolmigProcessLost": lambda dana: a_process("workers", "m2", age=300),
    "VolmigTicksWait": waiting("migrations", "jobs.worker.tick.run", 200),
    "VolmigBackgroundWaits": waiting("background", "hosts.tasks.refresh", 2000),
    "VolmigQueueDuplicates": waiting("migrations", "jobs.worker.tick.run", 1, 150),
    "VolmigTicksSlow": slow_ticks,
    "VolmigSshFailing": ssh_fails,
    "VolmigHypervisorsUnreachable": hypervisor(last_error="Tried to log in: refused.", seen_at=ago(4000)),
    "VolmigHypervisorQuarantined": hypervisor(quarantined_at=ago(60)),
    "VolmigHostctlDiffers": hypervisor(hostctl_hash="0123456789abcdef"),
    "VolmigCopyStalled": still,
    "VolmigMigrationHalted": scenes.halted,
    "VolmigWatcherSlow": lambda dana: a_process("watcher", "m2", figures={"turn_seconds": 8.5}),
    "VolmigWatcherLeasesLost": leases_lost,
    "VolmigDiskAlmostFull": lambda dana: a_process("workers", "m2", disk_free=GIB // 2, disk_size=100 * GIB),
    "VolmigClockDiffers": lambda dana: a_process("watcher", "m2", skew=-40.0),
    "VolmigHypervisorClockDiffers": hypervisor(clock_off=-6.5),
    "VolmigDatabaseConnections": many_connections,
    "VolmigBusy": busy,
    "VolmigAuditHeadsLate": no_head,
    "VolmigAuditLogSlow": slow_log,
    "VolmigDowntimesLong": long_downtimes,
    "VolmigNoticesFail": notice_fails,
    "VolmigReadOnly": lambda dana: incarnation.enter_read_only("src: another session acted there") and None,
    "VolmigBackupsDue": kept_too_long,
}


@pytest.fixture
def calm(dana, sound, site):
    """A sound site at work: a copy that moves, a migration on trial, ticks and logins that work."""
    scenes.job(dana, "preparing")
    scenes.job(dana, "on_trial")
    Hypervisor.objects.update(hostctl_hash="")
    for _ in range(10):
        tallies.record("volmig_tick_seconds", 0.4, status="preparing")
        tallies.record("volmig_ssh_connects", outcome="ok")
        tallies.record("volmig_audit_lock_wait_seconds", 0.002)
        tallies.record("volmig_downtime_seconds", 14.0)
    return scrape()


def minutes_of(rule):
    """How long the condition has to last: the rule's own time and the longest range that it looks back."""
    spans = [rule.get("for", "0m"), *re.findall(r"\[(\d+[smhd])\]", rule["expr"])]
    return 5 + round(sum(int(span[:-1]) * UNITS[span[-1]] for span in (spans[0], max(spans[1:], default="0m"))))


def rule_alone(name, directory):
    """The rules file with this rule only, so that promtool has less to do."""
    path = directory / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [BY_NAME[name]]}]}))
    return path


def test_every_rule_has_a_case_that_makes_it_fire():
    assert CASES.keys() == BY_NAME.keys()


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_alert_fires_on_its_condition(name, dana, calm, tmp_path):
    more = CASES[name](dana)
    after = scrape() | (more if isinstance(more, dict) else {})
    assert fires(rule_alone(name, tmp_path), name, calm, after, tmp_path, minutes_of(BY_NAME[name]))


def test_no_alert_fires_at_a_sound_site(calm, tmp_path):
    calm |= {"volmig_database_connections": 20.0, "volmig_database_connections_limit": 97.0}
    longest = max(map(minutes_of, BY_NAME.values()))
    busy = {name: value * (100 if COUNTER.search(name) else 1) for name, value in calm.items()}
    assert not fires(RULES, ".+", calm, busy, tmp_path, longest)


def test_a_target_that_was_never_scraped_is_missed(calm, tmp_path):
    name = "VolmigMetricsMissing"
    assert fires(rule_alone(name, tmp_path), name, {}, {"something_else": 1.0}, tmp_path, 5)


def test_of_several_targets_one_that_is_lost_is_not_all_of_volmig(calm, tmp_path):
    name = "VolmigMetricsMissing"
    two = {'up{job="volmig",instance="a"}': 0.0, 'up{job="volmig",instance="b"}': 1.0}
    assert not fires(rule_alone(name, tmp_path), name, {}, two, tmp_path, 5)
    assert fires(rule_alone(name, tmp_path), name, {}, dict.fromkeys(two, 0.0), tmp_path, 5)


def test_prometheus_accepts_the_rules():
    code, said = ask("check", "rules", RULES)
    assert (code, "SUCCESS" in said) == (0, True), said


def test_prometheus_finds_nothing_to_improve_in_the_metrics(calm):
    code, said = ask("check", "metrics", stdin=metrics.exposition().decode())
    assert (code, said) == (0, "")


def expressions():
    """Every expression of the rules and of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [rule["expr"] for rule in BY_NAME.values()] + [t["expr"] for panel in panels for t in panel["targets"]]


def test_every_metric_that_rules_and_dashboard_name_is_reported(calm):
    found = set()
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {f"{family.name}{suffix}" for suffix in suffixes}
    named = {name for text in expressions() for name in re.findall(r"\bvolmig_\w+", text)}
    assert len(named) > 30
    assert named - found == set()


def test_prometheus_can_read_every_expression_of_the_dashboard(tmp_path):
    records = [{"record": f"check:e{n}", "expr": text} for n, text in enumerate(expressions())]
    path = tmp_path / "expressions.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": records}]}))
    code, said = ask("check", "rules", path)
    assert code == 0, said


def test_the_page_of_the_documentation_says_of_every_alert_what_to_do():
    page = (Path(settings.BASE_DIR) / "docs/monitoring.md").read_text()
    assert [name for name in BY_NAME if f"`{name}`" not in page] == []


def test_the_page_of_the_documentation_says_which_alerts_are_for_the_person_on_call():
    page = (Path(settings.BASE_DIR) / "docs/monitoring.md").read_text()
    severity = {name: rule["labels"]["severity"] for name, rule in BY_NAME.items()}
    assert dict(re.findall(r"^\| `(Volmig\w+)` \| (\w+) \|", page, re.MULTILINE)) == severity
    [listed] = re.findall(r"^These page: (.+)$", page, re.MULTILINE)
    assert set(re.findall(r"`(Volmig\w+)`", listed)) == {name for name in severity if severity[name] == "page"}


def test_the_page_of_the_documentation_lists_every_metric(calm):
    page = (Path(settings.BASE_DIR) / "docs/monitoring.md").read_text()
    found = list(text_string_to_metric_families(metrics.exposition().decode()))
    names = [f"{family.name}_total" if family.type == "counter" else family.name for family in found]
    assert [name for name in names if f"`{name}`" not in page] == []
    listed = re.findall(r"^\| `(volmig_\w+)`", page, re.MULTILINE)
    assert sorted(listed) == sorted(names)
