"""What `manage.py upgrade-check` says, and a downgrade, which is refused."""

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from hosts.models import HostctlVersion, Hypervisor
from hosts.remote import hostctl
from jobs import upgrade
from jobs.models import Job
from tests.factories import approver
from tests.trust import versions
from tests.trust.amounts import figure
from volmig.management.commands import up

FORMER = versions.former()
OTHER = "0123456789abcdef"


@pytest.fixture
def waiting(drive):
    """A migration whose swap waits for approval, begun with another version than this volmig's."""
    job = drive.submit()
    approval = job.approvals.open().get()
    job.put(hostctl=OTHER)
    approval.bound |= {"hostctl": OTHER}
    approval.save()
    Hypervisor.objects.update(hostctl_hash=OTHER, hostctl_versions=[OTHER, hostctl.source_hash()])
    return job


def everywhere():
    return ", ".join(Hypervisor.objects.order_by("pk").values_list("name", flat=True))


def check(capsys, *words):
    """What is printed, and why it ended with 1."""
    try:
        call_command("upgrade_check", *words)
    except CommandError as error:
        return capsys.readouterr().out, str(error)
    return capsys.readouterr().out, ""


def test_a_migration_goes_on_with_its_version_where_that_stays_installed(waiting, capsys):
    out, error = check(capsys)
    assert f"The upgrade brings hostctl {hostctl.source_hash()}" in out
    assert f"Migration {waiting.pk} (awaiting approval) continues with hostctl {OTHER}." in out
    assert ("would" in out, error) == (False, "")


def test_hypervisors_without_the_new_file_are_named_before_the_upgrade(waiting, capsys):
    Hypervisor.objects.filter(name="src").update(hostctl_versions=[OTHER])
    out, error = check(capsys)
    assert f"Install hostctl {hostctl.source_hash()} before the upgrade on: src." in out
    assert error == "", "the migration needs it no more than before"
    out, _ = check(capsys, "--to", str(next(versions.FORMER.iterdir())))
    assert f"Install hostctl {FORMER.hash} before the upgrade on: {everywhere()}." in out


def test_a_migration_whose_version_is_gone_from_a_hypervisor_is_named_and_the_check_fails(waiting, capsys):
    Hypervisor.objects.filter(name="jump").update(hostctl_versions=[hostctl.source_hash()])
    out, error = check(capsys)
    assert f"It would wait: jump has {hostctl.source_hash()}, not {OTHER}." in out
    assert f"Would wait: migration {waiting.pk}" in error


def test_where_hostctl_is_shipped_volmig_has_to_have_the_file(waiting, capsys):
    Hypervisor.objects.update(shipped=True)
    assert f"It would wait: volmig has no file of hostctl {OTHER} to upload to src." in check(capsys)[0]
    HostctlVersion.objects.create(hash=OTHER, protocol=2, archive=b"x")
    assert check(capsys)[1] == ""


def test_an_approval_that_would_be_void_says_why(waiting, capsys):
    waiting.put(hostctl=FORMER.hash)
    approval = waiting.approvals.open().get()
    assert f"approval {approval.pk} names hostctl {OTHER}, not {FORMER.hash}" in check(capsys)[0]


def test_an_approval_that_became_void_says_that_another_version_would_carry_it_out(waiting, drive):
    approval = waiting.approvals.open().get()
    approval.approve(approver(), approval.digest, "as agreed")
    waiting.put(hostctl=FORMER.hash)
    drive.go(waiting)
    approval.refresh_from_db()
    assert approval.state == "void"
    assert "another version of hostctl than was shown" in approval.void_reason
    assert f"hostctl: was {OTHER}, is {FORMER.hash}" in approval.void_changes


def test_what_is_started_with_a_migration_that_would_wait_says_so(waiting, capsys, monkeypatch):
    monkeypatch.setattr(up, "first_administrator", lambda: "")
    Hypervisor.objects.filter(name="dst").update(hostctl_versions=[hostctl.source_hash()])
    up.prepare()
    assert f"It would wait: dst has {hostctl.source_hash()}, not {OTHER}." in capsys.readouterr().out


@pytest.mark.parametrize("to", [__file__, "/nowhere"])
def test_what_is_no_hostctl_is_no_upgrade(db, to, capsys):
    assert "is not a hostctl file" in check(capsys, "--to", to)[1]


def test_a_database_from_before_versions_were_kept_is_read_as_far_as_it_goes(waiting, capsys, monkeypatch):
    columns = upgrade.columns_of
    new = {"hostctl", "hostctl_versions"}
    monkeypatch.setattr(upgrade, "columns_of", lambda table: columns(table) - new if "version" not in table else set())
    out, error = check(capsys)
    assert f"Migration {waiting.pk} (awaiting approval) continues with hostctl {OTHER}." in out
    assert f"before the upgrade on: {everywhere()}" in out
    assert error == ""


# A downgrade


def newer_tables(job):
    MigrationRecorder(connection).record_applied("jobs", "0999_of_a_newer_volmig")
    return "The database has tables of a newer volmig (jobs 0999_of_a_newer_volmig)."


def newer_plan(job):
    job.put(plan=job.plan | {"format": 99})
    return f"Migration {job.pk} has a plan of format 99, this volmig reads up to 2."


def newer_protocol(job):
    HostctlVersion.objects.create(hash=OTHER, protocol=99, archive=b"x")
    return f"Migration {job.pk} began with hostctl {OTHER}, which speaks protocol 99; this volmig speaks up to"


@pytest.mark.parametrize("newer", [newer_tables, newer_plan, newer_protocol])
def test_a_downgrade_is_refused_with_a_clear_message_before_anything_is_changed(waiting, capsys, monkeypatch, newer):
    said = newer(waiting)
    monkeypatch.setattr(up.online, "migrate", lambda *_: pytest.fail("the database was changed"))
    for refused in (up.prepare, lambda: call_command("upgrade_check")):
        with pytest.raises(CommandError) as caught:
            refused()
        assert str(caught.value).startswith(f"This volmig is older than its database. {said}")
        assert "Nothing was changed. Start the release that last ran on this database" in str(caught.value)
    figure(f"downgrade refused: {said}")


def test_what_has_ended_keeps_nobody_from_starting_an_older_volmig(waiting):
    newer_plan(waiting)
    Job.objects.update(status="undone")
    assert upgrade.downgrade() == ""


def test_the_file_of_another_release_is_kept_and_written_again(db, tmp_path, capsys):
    [file] = versions.FORMER.iterdir()
    call_command("hostctl", "--add", str(file))
    call_command("hostctl", "--version", FORMER.hash, "--output", str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    kept = HostctlVersion.objects.get()
    assert (kept.pk, kept.protocol) == (FORMER.hash, 1)
    with pytest.raises(CommandError, match=f"volmig has no file of hostctl {OTHER}; it has {FORMER.hash}"):
        call_command("hostctl", "--version", OTHER)
