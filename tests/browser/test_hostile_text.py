"""Text that would like to be a program, in every field that a person or a machine fills in: it is shown and not run."""

import datetime as dt
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from hosts.models import Cloud, Hypervisor, Share
from jobs.models import Approval, Decision, Footprint, Job, Policy, StepRun
from jobs.web.migrations import TABS
from tests.pages import scenes
from volmig.accounts.models import Login, Team
from volmig.record.models import Event

RUN = "window.executed=1"
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"<ScRiPt >{RUN}</sCrIpT>",
    f"<img src=x onerror={RUN}>",
    f"<img src=x onerror='{RUN}'//",
    f'"><img src=x onerror="{RUN}">',
    f"'><svg/onload={RUN}>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<svg><script>{RUN}</script></svg>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'>",
    f"<iframe src=javascript:parent.{RUN}>",
    f"<a href=javascript:{RUN}>click</a>",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<video><source onerror={RUN}>",
    f"<math><mtext></form><form><mglyph><style></math><img src=x onerror={RUN}>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<style>@import 'javascript:{RUN}';</style>",
    f"<link rel=stylesheet href=javascript:{RUN}>",
    f"<base href=javascript:{RUN}//>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    f"<object data=javascript:{RUN}>",
    f"<embed src=javascript:{RUN}>",
    f"<form action=javascript:{RUN}><button>go</button></form>",
    f"<template><img src=x onerror={RUN}></template>",
    f"<div hx-get=/ hx-trigger=load hx-on::load='{RUN}'>",
    f"<div hx-on:click='{RUN}' hx-vals='js:{{a: {RUN}}}'>",
    f"<hx-partial hx-target='#content'><img src=x onerror={RUN}></hx-partial>",
    "<div hx-post=/logout/ hx-trigger=load>",
    "<hx-partial hx-target='#where'>gone</hx-partial>",
    "{{ 7|add:7 }}{% debug %}{% load static %}",
    "{% include 'base.html' %}{{ request.user.password }}",
    "{# comment #}{{ settings.SECRET_KEY }}",
    f"${{{RUN}}}#{{{RUN}}}<%= {RUN} %>",
    f"javascript:{RUN}",
    f"data:text/html,<script>{RUN}</script>",
    f"\u202e<script>{RUN}</script>\u202c",
    f"\u2066\u2067<img src=x onerror={RUN}>\u2069",
    f"\u200b<\u200bscript>{RUN}</script>",
    f"\x1b[31m\x1b]0;{RUN}\x07<script>{RUN}</script>",
    f"\x01\x02\x08\x0b\x0c\x7f<img src=x onerror={RUN}>",
    f"\ufeff\ufffe<script>{RUN}</script>",
    f"line\r\nSet-Cookie: a=b\r\n\r\n<script>{RUN}</script>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#60;img src=x onerror={RUN}&#62;",
    f"%3Cscript%3E{RUN}%3C/script%3E",
    f"+ADw-script+AD4-{RUN}+ADw-/script+AD4-",
    f"＜script＞{RUN}＜/script＞",
    f"`;{RUN};`\\u003cscript\\u003e",
    f"'\";{RUN};//",
    "=cmd|' /C calc'!A0",
    "../../../etc/passwd\\..\\",
    "A" * 4000 + f"<img src=x onerror={RUN}>",
]
# Everything in one text, since it is shown as one: short columns get as much of it as they hold, piece by piece.
ALL = "\n".join(PAYLOADS)
KEPT = {"pk", "status", "kind", "state", "verdict", "direction", "result", "step", "route", "uuid", "hash", "prev_hash"}
KEPT |= {"digest", "host_key", "time_zone", "control", "session_key", "password", "outcome", "address"}


@pytest.fixture
def full(hosts, person):
    """One of everything, so that every page has something to show."""
    dana, kim = person("dana", "operator"), person("kim", "approver")
    jobs = [scenes.job(dana, status) for status in ("preparing", "awaiting_approval", "on_trial", "undone", "done")]
    jobs.append(scenes.halted(dana))
    asked = [scenes.approval(job) for job in jobs]
    scenes.decision(asked[0], kim)
    asked[3].void("It changed.", ["x"])
    scenes.reservation(jobs[0])
    Cloud.objects.create(name="cloud")
    Policy.objects.create(team=Team.objects.get())
    return jobs


def write(model, number):
    """Puts hostile text into every text column of every row; long columns get all of it."""
    for row in model.objects.all():
        for field in model._meta.concrete_fields:
            if field.is_relation or field.attname in KEPT or field.primary_key or field.unique:
                continue
            length = getattr(field, "max_length", None)
            if field.get_internal_type() in ("CharField", "TextField"):
                text = ALL if length is None else PAYLOADS[number % len(PAYLOADS)][:length]
                model.objects.filter(pk=row.pk).update(**{field.attname: text.replace("\x00", "")})
                number += 1
    return number


def hostile_json():
    return {PAYLOADS[0]: PAYLOADS, "list": [{each: each} for each in PAYLOADS], "tried": ALL, "found": ALL, "next": ALL}


def spoil(round_number):
    """Every row of every page, as a machine or a person who means harm would have written it."""
    for model in (Job, StepRun, Approval, Decision, Footprint, Hypervisor, Share):
        round_number = write(model, round_number)
    for name in ("volume_groups", "data_addresses", "mounts", "instances", "reaches"):
        round_number = write(getattr(Hypervisor, name).rel.related_model, round_number)
    evil = hostile_json()
    checks = [{"name": ALL, "severity": "warns", "ok": False, "sentence": ALL, "found": evil}]
    Job.objects.update(checks=checks, halt_data=evil)
    commands = [{**scenes.command(each, 1, stderr=each)} for each in PAYLOADS]
    StepRun.objects.update(evidence=evil, error=evil, commands=commands)
    Approval.objects.update(void_changes=PAYLOADS)
    for row in Approval.objects.all():
        Approval.objects.filter(pk=row.pk).update(bound={**row.bound, "commands": PAYLOADS, "more": evil})
    for job in Job.objects.exclude(plan={}):
        plan = job.plan
        for step in plan["steps"]:
            step["title"], step["hypervisor"] = ALL, ALL
            step["commands"] = [{"kind": "command", "text": each} for each in PAYLOADS]
        facts = job.facts
        facts["source"]["contents"] = {"summary": ALL}
        Job.objects.filter(pk=job.pk).update(plan=plan, facts=facts)
    instances = Hypervisor.objects.filter(instances__isnull=False)
    for host in instances.distinct():
        host.instances.update(disks=[{"name": each[:60], "path": each, "format": each[:20]} for each in PAYLOADS])


def record(job):
    dana = User.objects.get(username="dana")
    for each in PAYLOADS:
        Event.append(each[:80], actor=dana, job=job, object=each, data={each: each})


@pytest.fixture
def pages(full):
    asked, host = Approval.objects.all(), Hypervisor.objects.all()
    cloud, team, dana = Cloud.objects.get(), Team.objects.get(), User.objects.get(username="dana")
    found = ["/", "/migrations/", "/approvals/", "/audit/", "/account/", "/account/factor/", "/accounts/", "/teams/"]
    found += [f"/accounts/{dana.pk}/", f"/teams/{team.pk}/", f"/teams/{team.pk}/policies/{Policy.objects.get().pk}/"]
    found += [f"/migrations/{job.pk}/?tab={tab}" for job in full[:1] for tab in (*TABS, "log&questions=1")]
    found += [f"/migrations/{job.pk}/" for job in full[1:]] + [f"/approvals/{each.pk}/" for each in asked]
    found += ["/hosts/", "/hosts/register/", "/hosts/clouds/", f"/hosts/clouds/{cloud.pk}/"]
    found += [f"/hosts/{each.pk}/{tail}" for each in host for tail in ("", "edit/", "pin/")]
    chosen = "&".join(f"{name}={host[index].pk}" for name, index in (("source", 0), ("destination", 1)))
    return [*found, f"/migrations/new?{chosen}"]


def test_no_hostile_text_is_run_on_any_page(full, pages, logged_in):
    page = logged_in("ada", "operator", "approver", "administrator", "auditor")
    page.context.add_init_script("window.executed = 0;")
    asked_outside = []
    page.on("request", lambda request: asked_outside.append(request.url) if "127.0.0.1" not in request.url else None)
    page.on("dialog", lambda dialog: (asked_outside.append(dialog.message), dialog.dismiss()))
    team, cloud = Team.objects.get(), Cloud.objects.get()
    for number in (0, 27):  # so that short columns get other pieces each time
        spoil(number)
        record(full[0].pk)
        Team.objects.filter(pk=team.pk).update(name=PAYLOADS[number][:100])
        Cloud.objects.filter(pk=cloud.pk).update(name=PAYLOADS[number + 1][:100])
        Hypervisor.objects.filter(pk__in=Hypervisor.objects.values("pk")[:1]).update(name=PAYLOADS[number + 2][:100])
        Login.objects.update(address=PAYLOADS[number][:45], seen_at=timezone.now() + dt.timedelta(seconds=1))
        for path in pages:
            page.goto(path)
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
            assert page.evaluate("window.executed") == 0, path
            made = "script:not([src]), img, iframe, object, embed, base, video, math, animate, [onerror], [onload]"
            assert page.locator(made).count() == 0, path
    assert asked_outside == []


def test_what_is_typed_into_the_address_is_not_run(hosts, logged_in):
    page = logged_in("ada", "operator", "approver", "administrator", "auditor")
    page.context.add_init_script("window.executed = 0;")
    for each in PAYLOADS[:-1]:
        for path in ("/migrations/", "/audit/"):
            query = urlencode({"q": each, "person": each, "who": each, "on": each, "ticket": each}, errors="replace")
            page.goto(f"{path}?{query}")
            assert page.evaluate("window.executed") == 0, (path, each)


def test_hostile_text_that_comes_live_is_not_run(full, logged_in):
    page = logged_in("ada", "operator", "approver", "administrator", "auditor")
    page.context.add_init_script("window.executed = 0;")
    page.goto(f"/migrations/{full[0].pk}/?tab=log")
    page.wait_for_selector("[data-live][data-state=live]")
    spoil(5)
    Job.objects.filter(pk=full[0].pk).update(waiting_for="now it came" + ALL, halt_reason="now it came" + ALL)
    page.wait_for_selector("#where:has-text('now it came')")
    page.wait_for_timeout(500)  # what an event handler would do, it does a moment later
    assert page.evaluate("window.executed") == 0
    assert page.locator("#where img, #where script, #where iframe, #running img").count() == 0
