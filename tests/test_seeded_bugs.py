"""Guards of the product broken on purpose, one at a time in a copy: for each some test fails, or it guards nothing."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("volmig", "hosts", "jobs", "templates", "static", "tests", "manage.py", "pyproject.toml")


class Bug(NamedTuple):
    """`guard` in `file` replaced by `broken`; `caught` is what has to fail then, as pytest is given it."""

    name: str
    file: str
    guard: str
    broken: str
    caught: str


APPROVAL, JOB = "jobs/models/approval.py", "jobs/models/job.py"
WORK, SCHEDULING = "jobs/worker/executor.py", "jobs/worker/scheduling.py"
LVM, SWAP, STAGE = (f"hosts/remote/hostctl/{name}.py" for name in ("lvm", "swap", "stage"))
EXPORTS, NFS_MOUNT, NFS_SERVER, FILESYSTEM, REQUEST = (
    f"hosts/remote/hostctl/{name}.py" for name in ("exports", "nfs_mount", "nfs_server", "relay_filesystem", "request")
)
STORE = "hosts/remote/hostctl/store.py"
BUGS = [
    Bug(
        "the requester may approve",
        APPROVAL,
        "if by.pk == self.requester_id:",
        "if False:",
        "tests/jobs/test_refusals.py::test_a_superuser_who_asked_is_refused_although_superusers_may_everything",
    ),
    Bug(
        "the last editor may approve",
        APPROVAL,
        "elif by.pk == self.last_editor_id:",
        "elif False:",
        "tests/jobs/test_verbs.py::test_the_last_editor_cannot_approve",
    ),
    Bug(
        "the role is not looked at when somebody decides",
        APPROVAL,
        'sentences = why_not(by, "approve", self.teams())',
        "sentences = list[str]()",
        "tests/jobs/test_verbs.py::test_without_the_role_nobody_approves",
    ),
    Bug(
        "a consent outlasts the role of its giver",
        APPROVAL,
        'return sum(not why_not(person, "approve", teams) for person in people)',
        "return len(people)",
        "tests/jobs/test_refusals.py::test_a_consent_does_not_outlast_its_giver",
    ),
    Bug(
        "another version is approved than was looked at",
        APPROVAL,
        "if digest != self.digest:",
        "if not digest:",
        "tests/jobs/test_refusals.py::test_a_yes_to_the_digest_of_another_version_is_refused",
    ),
    Bug(
        "a consent that expired is used",
        APPROVAL,
        "filter(pk=approval.pk, expires_at__gt=now)",
        "filter(pk=approval.pk)",
        "tests/jobs/test_refusals.py::test_a_consent_that_expired_since_it_was_read_is_not_used",
    ),
    Bug(
        "a consent is used twice",
        APPROVAL,
        "return bool(self.open().filter(pk=approval.pk, expires_at__gt=now).update(consumed_at=now))",
        "return bool(self.filter(pk=approval.pk, expires_at__gt=now).update(consumed_at=now))",
        "tests/jobs/test_verbs.py::test_consent_is_used_once",
    ),
    Bug(
        "facts that changed since the consent do not void it",
        WORK,
        "if approval_binding.digest(seen) != approval.digest:",
        "if not seen:",
        "tests/jobs/test_refusals.py::test_a_bound_fact_that_changed_makes_the_consent_void_and_the_change_is_shown",
    ),
    Bug(
        "a copy that went stale is swapped in",
        WORK,
        "stale = approval_binding.stale(route, facts, evidence)",
        "stale = list[str]()",
        "tests/jobs/test_refusals.py::test_a_stage_that_is_another_file_is_not_swapped_in",
    ),
    Bug(
        "a source that was written to does not make its copy stale",
        "jobs/engine/endpoints/lv.py",
        'unchanged = ("writes", "sectors_written")',
        "unchanged = ()",
        "tests/engine/test_values.py::test_a_copy_that_is_not_as_it_was_verified_is_stale",
    ),
    Bug(
        "two parts of a route take each other's planned values",
        "jobs/engine/routes.py",
        "if twice := sorted({name for name in names if names.count(name) > 1}):",
        "if twice := list[str]():",
        "tests/engine/test_parts.py::test_two_parts_that_give_a_value_the_same_name_make_no_plan",
    ),
    Bug(
        "nothing checks the share where no relay delivers the copy",
        "jobs/engine/checks.py",
        "case = replace(case, delivers=route.transport.delivers, size=route.source.size(case.facts))",
        "case = replace(case, size=route.source.size(case.facts))",
        "tests/engine/test_another_route.py::test_its_checks_and_those_of_the_share_are_made",
    ),
    Bug(
        "a swap outlasts its window",
        WORK,
        'if approval.state == "approved" and self._waits_for_window(approval):',
        'if approval.state == "approved" and not approval.pk:',
        "tests/jobs/test_refusals.py::test_a_consent_is_not_used_outside_of_its_window",
    ),
    Bug(
        "an older database is not found out",
        "volmig/incarnation.py",
        'if claims is None or claims < int(seen.get("claim", 0)):',
        "if False:",
        "tests/volmig/test_incarnation.py::test_a_database_that_knows_a_lower_count_is_older",
    ),
    Bug(
        "a host accepts whoever asks",
        "hosts/remote/hostctl/ownership.py",
        'if owner["session"] not in (session, after):',
        "if False:",
        "tests/hostctl/test_ownership.py::test_another_is_refused_with_the_owner_and_nothing_is_changed",
    ),
    Bug(
        "what a host knows of its owner counts for nothing",
        "jobs/worker/gateway.py",
        "if fault := incarnation.stale(owner):",
        "if (fault := None):",
        "tests/jobs/test_owners.py::test_a_session_that_the_database_does_not_know_makes_volmig_read_only",
    ),
    Bug(
        "a host forgets the fence with the job",
        STORE,
        'return self.read("fence") or self.buried()',
        'return self.read("fence") or {}',
        "tests/hostctl/test_request.py"
        "::test_a_late_owner_of_a_forgotten_job_is_refused_and_nothing_of_it_comes_up_again",
    ),
    Bug(
        "two workers claim one job",
        JOB,
        "self.filter(lease_until=None, wake_at__lte=Now()), self.filter(abandoned())",
        "self.all(), self.filter(abandoned())",
        "tests/jobs/test_ticks.py::test_a_claimed_job_is_left_alone",
    ),
    Bug(
        "a worker that lost its job still writes on it",
        JOB,
        "if not Job.objects.filter(pk=self.pk, fence=self.fence).update(**values):",
        "if not Job.objects.filter(pk=self.pk).update(**values):",
        "tests/jobs/test_recovery.py::test_a_worker_that_lost_the_job_writes_nothing_on_its_row",
    ),
    Bug(
        "an earlier owner is not shut out before the next one acts",
        WORK,
        "if self.job.taken_over and not self._shut_out():",
        "if False:",
        "tests/jobs/test_recovery.py::test_nothing_is_done_before_every_hypervisor_has_heard_of_the_new_owner",
    ),
    Bug(
        "two jobs count the same free space",
        SCHEDULING,
        "why_not = no_slot(job) or no_space(job)",
        "why_not = no_slot(job)",
        "tests/jobs/test_ticks.py::test_space_that_another_job_has_reserved_is_waited_for",
    ),
    Bug(
        "a cancel amid the swap is not heard",
        WORK,
        "if job.cancel_requested_at and not runner.begun(Task.START, self._journal()):",
        "if False:",
        "tests/jobs/test_through_nova.py::test_a_credential_that_is_taken_away_in_mid_swap_halts_and_says_so",
    ),
    Bug(
        "a rollback on trial runs without the lock",
        WORK,
        "if not self._locked_again():",
        "if not self.job.pk:",
        "tests/jobs/test_recovery.py::test_a_rollback_from_the_trial_locks_the_instance_first_and_unlocks_it_at_the_end",
    ),
    Bug(
        "an instance is started although its disk could not be put back",
        "jobs/engine/runner.py",
        "if planned.step.bars:",
        "if False:",
        "tests/jobs/test_recovery.py"
        "::test_an_instance_whose_old_disk_cannot_be_put_back_stays_down_and_locked_until_it_can",
    ),
    Bug(
        "the lock goes while caches may still name the old file",
        "jobs/engine/runner.py",
        'return Wait(sentence, until, kind="settle") if until > now else None',
        "return None",
        "tests/engine/test_runner.py::test_the_lock_stays_until_no_cache_can_name_the_old_file",
    ),
    Bug(
        "a volume without the job's tags is removed",
        LVM,
        '("tag %s" % tag, tag in found.tags),',
        "",
        "tests/hostctl/test_guards.py::test_lv_remove_refuses",
    ),
    Bug(
        "a volume with another UUID is removed",
        LVM,
        '("UUID %s" % uuid, not uuid or found.uuid == uuid),',
        "",
        "tests/hostctl/test_guards.py::test_lv_remove_refuses",
    ),
    Bug(
        "a volume that is open is fenced",
        LVM,
        "    if found.open:\n",
        "    if not found:\n",
        "tests/hostctl/test_guards.py::test_lv_fence_refuses",
    ),
    Bug(
        "a write to the source during the copy goes unseen",
        LVM,
        'if (writes, sectors) != (self.args["writes"], self.args["sectors_written"]):',
        "if writes < 0:",
        "tests/hostctl/test_guards.py::test_a_write_during_the_copy_trips_the_wire",
    ),
    Bug(
        "a filesystem is made on what holds something",
        FILESYSTEM,
        "    if probe.exit == 0:\n",
        "    if probe.exit == 99:\n",
        "tests/hostctl/test_guards.py::test_mkfs_refuses_anything_but_our_own_blank_closed_volume",
    ),
    Bug(
        "a filesystem is unmounted while it is exported",
        FILESYSTEM,
        "if any(row.path == mountpoint for row in exports.exports(work)):",
        "if False:",
        "tests/hostctl/test_guards.py::test_fs_remove_refuses",
    ),
    Bug(
        "an exportfs that fails counts as nothing exported",
        EXPORTS,
        'output = work.ask("exportfs", "-s", good=(0, NOT_INSTALLED))',
        'output = work.ask("exportfs", "-s", good=None)',
        "tests/hostctl/test_guards.py::test_what_exportfs_does_not_say_is_not_taken_for_nothing_exported",
    ),
    Bug(
        "a source is given back while its holder has it open",
        LVM,
        "if found is not None and found.active and not _soon(lambda: not _is_held(work, found)):",
        "if not _soon(lambda: True):",
        "tests/hostctl/test_guards.py::test_a_source_is_not_given_back_while_its_holder_has_it_open",
    ),
    Bug(
        "a unit that ran is called off",
        REQUEST,
        "if free and kept.result(key) is None:",
        "if True:",
        "tests/hostctl/test_request.py",
    ),
    Bug(
        "an export to everybody counts as the planned one",
        NFS_SERVER,
        'if len(rows) == 1 and rows[0].client == args["client"] and not missing:',
        "if not missing:",
        "tests/hostctl/test_guards.py::test_export_refuses_an_export_that_is_wider_or_other_than_planned",
    ),
    Bug(
        "another's mount is unmounted",
        NFS_MOUNT,
        'if len(found) != 1 or not found[0].source.endswith(":" + export_path)',
        "if len(found) > 9",
        "tests/hostctl/test_guards.py::test_nfs_unmount_refuses_what_is_not_the_jobs_mount",
    ),
    Bug(
        "the swap does not look whether the disks are as recorded",
        SWAP,
        "        if name in recorded and seen[name] != recorded[name]\n",
        "        if name not in seen\n",
        "tests/hostctl/test_swap.py::test_swap_refuses_and_touches_nothing_when_anything_is_not_as_recorded",
    ),
    Bug(
        "a disk is exchanged under a running instance",
        SWAP,
        'if found != "shut off":',
        "if not work:",
        "tests/hostctl/test_swap.py::test_swap_refuses_and_touches_nothing_when_anything_is_not_as_recorded",
    ),
    Bug(
        "whoever has the disk open is not asked",
        SWAP,
        "                _take_and_release(fd, start, disk)\n",
        "                pass\n",
        "tests/hostctl/test_swap.py::test_swap_refuses_a_disk_whose_lock_bytes_somebody_holds",
    ),
    Bug(
        "a purge deletes whatever lies there",
        SWAP,
        'if live is None or live.st_ino != args["live_inode"]:',
        "if live is None:",
        "tests/hostctl/test_swap.py::test_purge_refuses_any_other_inode",
    ),
    Bug(
        "a stage that has a second name is removed",
        STAGE,
        "if there is not None and (not stat.S_ISREG(there.st_mode) or there.st_nlink != 1):",
        "if False:",
        "tests/hostctl/test_copy.py::test_a_stage_with_a_second_name_is_never_replaced_or_removed",
    ),
    Bug(
        "a request of an owner that lost the job is carried out",
        "hosts/remote/hostctl/store.py",
        "if fence < highest or (fence == highest",
        "if False and (fence == highest",
        "tests/hostctl/test_request.py::test_a_lower_fence_is_refused_and_an_equal_or_higher_one_is_not",
    ),
    Bug(
        "another hostctl than volmig's own is used",
        REQUEST,
        "if request.hash and request.hash != source_hash():",
        "if False:",
        "tests/hostctl/test_request.py::test_another_hash_is_refused",
    ),
    Bug(
        "a host whose key changed is entered",
        "hosts/remote/ssh.py",
        "client.set_missing_host_key_policy(paramiko.RejectPolicy())\n"
        '    name = address.host if address.port == 22 else f"[{address.host}]:{address.port}"',
        "client.set_missing_host_key_policy(paramiko.AutoAddPolicy())\n"
        '    name = "another"',
        "tests/hosts/test_ssh.py::test_a_changed_host_key_is_refused_and_nothing_is_sent",
    ),
    Bug(
        "a lock that somebody else put there is taken off",
        "hosts/remote/nova_control.py",
        'if not seen["locked"] or seen["locked_reason"] != said.args["reason"]:',
        'if not seen["locked"]:',
        "tests/jobs/test_through_nova.py::test_a_lock_that_somebody_else_put_in_place_of_ours_stays",
    ),
    Bug(
        "a changed event of the record goes unseen",
        "volmig/record/chain.py",
        'yield f"Event {seq} was changed after it was written."',
        "pass",
        "tests/volmig/test_record.py::test_what_was_changed_behind_its_back_is_found",
    ),
    Bug(
        "a person of another team finds a migration",
        "volmig/accounts/roles.py",
        "return self.all() if sees_all(user) else self.of_teams(user)",
        "return self.all()",
        "tests/volmig/test_teams.py",
    ),
    Bug(
        "a worker runs any function that a row names",
        "volmig/models.py",
        'return "its name is not in settings.TASKS"',
        'return ""',
        "tests/trust/test_database_writer.py -k takes_no_row",
    ),
    Bug(
        "a worker runs whatever it is given",
        "volmig/broker.py",
        "if name not in settings.TASKS or not (number is None or type(number) is int):",
        "if False:",
        "tests/trust/test_database_writer.py -k a_worker_refuses",
    ),
    Bug(
        "another task is run in the queue of ticks",
        "volmig/models.py",
        "if expected != self.queue:",
        "if False:",
        "tests/trust/test_database_writer.py -k queue_of_another",
    ),
    Bug(
        "a refresh is queued again while it runs",
        "volmig/queue.py",
        "if equal.running().exists():",
        "if False:",
        "tests/trust/test_priority.py -k queued_once_while_it_waits",
    ),
    Bug(
        "a person may cause as much work as they like",
        "volmig/queue.py",
        "if rows.count() >= limit:",
        "if False:",
        "tests/trust/test_priority.py -k capped",
    ),
    Bug(
        "a member of a backup that was altered is restored",
        "volmig/backup/archive.py",
        "if _write(_content(tar, entry), directory / member.name) != member.sha256:",
        "if not _write(_content(tar, entry), directory / member.name):",
        "tests/trust/test_backup.py -k made_up",
    ),
    Bug(
        "a member of a backup leaves the directory",
        "volmig/backup/archive.py",
        "if not NAME.fullmatch(name):",
        "if False:",
        "tests/trust/test_backup.py -k made_up",
    ),
    Bug(
        "a restore writes over what is there",
        "volmig/backup/restore.py",
        "if directory.is_dir() and any(directory.iterdir()):",
        "if False:",
        "tests/trust/test_backup.py -k in_use",
    ),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_the_guard_to_be_broken_stands_where_it_is_looked_for(bug):
    assert (ROOT / bug.file).read_text().count(bug.guard) == 1


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The tree in another place, where breaking it does no harm."""
    place = tmp_path_factory.mktemp("broken")
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, place / name, ignore=ignored) if source.is_dir() else shutil.copy(source, place / name)
    return place


@pytest.mark.torture
@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_seeded_bug_is_caught(bug, copy):
    file = copy / bug.file
    whole = file.read_text()
    file.write_text(whole.replace(bug.guard, bug.broken))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider"]
        done = subprocess.run([*command, *bug.caught.split()], cwd=copy, capture_output=True, text=True, check=False)
    finally:
        file.write_text(whole)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, f"{bug.name}: {done.stdout[-2000:]}"
