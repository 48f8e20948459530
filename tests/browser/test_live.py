"""Live pages in a real browser: progress moves without reload, forms keep what is typed, lost rights end it."""

import re

from django.contrib.auth.models import User
from django.utils import timezone

from jobs.models import Job
from tests.pages import scenes


def move(run, done):
    """What the watcher writes when a step reports progress."""
    run.bytes_done, run.bytes_read, run.bytes_written = done, done, done // 2
    run.progress_at, run.rate = timezone.now(), 50 << 20
    run.save()


def shown(page):
    return page.get_attribute("#running [data-percent]", "data-percent")


def wait_live(page):
    page.wait_for_selector("[data-live][data-state=live]")


# What htmx itself puts off to a timer has run when a later timer runs.
HTMX_HAS_STARTED = """new Promise((done) => {
    const look = () => window.htmx ? setTimeout(done) : requestAnimationFrame(look);
    look();
})"""


def test_a_page_goes_live_although_its_scripts_come_late_one_by_one(logged_in, hosts):
    page, held = logged_in("dana", "operator"), []
    job = scenes.job(User.objects.get(username="dana"), "preparing")
    page.route("**/hx-ws.min.js", lambda route: held.append(route))
    page.goto(f"/migrations/{job.pk}/", wait_until="commit")
    page.evaluate(HTMX_HAS_STARTED)
    held[0].continue_()
    wait_live(page)


def test_percentages_move_without_a_reload_and_typed_text_and_focus_stay(logged_in, hosts):
    page = logged_in("dana", "operator")
    job = scenes.job(User.objects.get(username="dana"), "preparing")
    run = job.runs.get(step="convert")
    page.goto(f"/migrations/{job.pk}/")
    wait_live(page)
    page.evaluate("window.notReloaded = true")
    page.fill("#id_rate", "17")
    page.focus("#id_rate")
    for percent in (70, 75, 80, 85, 90, 95):
        move(run, job.source_size * percent // 100)
        page.wait_for_selector(f"#running [data-percent='{percent}.0']")
    assert page.evaluate("window.notReloaded")
    assert page.input_value("#id_rate") == "17"
    assert page.evaluate("document.activeElement.id") == "id_rate"
    assert page.get_attribute("#step-convert progress", "value") == str(job.source_size * 95 // 100)


def test_a_rate_plot_is_drawn_from_bytes_really_moved(logged_in, hosts):
    page = logged_in("dana", "operator")
    job = scenes.job(User.objects.get(username="dana"), "preparing")
    run = job.runs.get(step="convert")
    page.goto(f"/migrations/{job.pk}/")
    wait_live(page)
    for percent in (70, 71, 72):
        move(run, job.source_size * percent // 100)
        page.wait_for_selector(f"#running [data-percent='{percent}.0']")
        page.wait_for_timeout(600)  # the plot takes at most two points a second
    page.wait_for_selector("[data-plot] canvas", state="visible")


def test_what_depends_on_who_looks_is_fetched_again(logged_in, hosts):
    page = logged_in("dana", "operator")
    job = scenes.job(User.objects.get(username="dana"), "planned")
    page.goto(f"/migrations/{job.pk}/")
    wait_live(page)
    page.wait_for_selector("#verb-start button:enabled")
    Job.objects.filter(pk=job.pk).update(status="on_trial")
    page.wait_for_selector("#verb-confirm button")
    page.wait_for_selector("#where .state:has-text('On trial')")
    assert page.query_selector("#verb-start") is None


def test_the_limits_form_comes_and_goes_with_what_a_limit_would_change(logged_in, hosts):
    page = logged_in("dana", "operator")
    job = scenes.job(User.objects.get(username="dana"), "preparing")
    page.goto(f"/migrations/{job.pk}/")
    wait_live(page)
    page.wait_for_selector("#id_rate")
    # There and back within one look would not be seen; no migration goes back, so the version tells them apart.
    Job.objects.filter(pk=job.pk).update(status="on_trial", version=2)
    page.wait_for_selector("#id_rate", state="detached")
    Job.objects.filter(pk=job.pk).update(status="preparing", version=3)
    page.wait_for_selector("#id_rate")


def test_checks_and_plan_appear_when_they_are_made(logged_in, hosts):
    page = logged_in("dana", "operator")
    job = scenes.job(User.objects.get(username="dana"), "checking")
    page.goto(f"/migrations/{job.pk}/")
    wait_live(page)
    page.wait_for_selector("#details:has-text('No plan yet')")
    scenes.plan_for(job)
    Job.objects.filter(pk=job.pk).update(status="planned")
    page.wait_for_selector("#details:has-text('qemu-img convert')")
    page.wait_for_selector("#facts h2:has-text('Checks')")


def test_what_somebody_opened_stays_open_while_the_page_follows(logged_in, hosts):
    page = logged_in("dana", "operator")
    job = scenes.job(User.objects.get(username="dana"), "preparing")
    page.goto(f"/migrations/{job.pk}/?tab=evidence")
    wait_live(page)
    page.click("#details summary")
    job.runs.filter(step="convert").update(evidence={"seen": "news-77"})
    Job.objects.filter(pk=job.pk).update(waiting_for="news")
    page.wait_for_selector("#details:has-text('news-77')")
    assert page.locator("#details details[open]").count() == 1


def test_the_overview_follows_without_a_reload(logged_in, hosts):
    page = logged_in("dana", "operator")
    page.goto("/")
    wait_live(page)
    page.evaluate("window.notReloaded = true")
    job = scenes.job(User.objects.get(username="dana"), "preparing", instance_name="appears-1")
    page.wait_for_selector("text=appears-1")
    move(job.runs.get(step="convert"), job.source_size * 88 // 100)
    page.wait_for_selector("[data-percent='88.0']")
    assert page.evaluate("window.notReloaded")


def test_the_socket_of_a_disabled_person_is_closed_within_seconds(logged_in, hosts):
    page = logged_in("dana", "operator")
    job = scenes.job(User.objects.get(username="dana"), "preparing")
    # What a page fetches when something changed is answered here: the server would send this person to the login.
    page.route(re.compile(r"[?&]part=|/count$"), lambda route: route.fulfill(status=204))
    page.goto(f"/migrations/{job.pk}/")
    wait_live(page)
    User.objects.filter(username="dana").update(is_active=False)
    page.wait_for_selector("[data-live][data-state=ended]", timeout=10_000)
    move(job.runs.get(step="convert"), job.source_size)
    page.wait_for_timeout(1000)  # nothing may come any more
    assert shown(page) == "62.4"


def test_choosing_in_one_column_narrows_the_others_and_keeps_what_was_typed(logged_in, hosts):
    page = logged_in("dana", "operator")
    page.goto("/migrations/new")
    page.fill("#id_ticket", "OPS-9")
    page.select_option("#id_source", label="cmp-lvm-07")
    page.check("label:has-text('3f8df945') input")
    page.select_option("#id_destination", label="cmp-nfs-03")
    page.wait_for_selector("input[name=disk]")
    page.check("input[name=disk]:enabled")
    page.wait_for_selector("text=does not mount")
    page.check("input[name=relay]:enabled")
    page.wait_for_selector("input[name=relay]:checked")
    assert page.input_value("#id_ticket") == "OPS-9"
    page.click("text=Check and plan")
    page.wait_for_url("**/migrations/*/")
    job = Job.objects.get()
    assert (job.ticket, job.source.name, job.relay.name) == ("OPS-9", "cmp-lvm-07", "jump-02")


def test_without_javascript_a_migration_is_submitted_and_looked_at(logged_in, hosts):
    page = logged_in("dana", "operator", java_script_enabled=False)
    page.goto("/migrations/new")
    page.select_option("#id_source", label="cmp-lvm-07")
    page.select_option("#id_destination", label="cmp-nfs-03")
    page.click("noscript button >> nth=0")
    page.check("label:has-text('3f8df945') input")
    page.check("input[name=disk]:enabled")
    page.check("input[name=relay]:enabled >> nth=0")
    page.click("text=Check and plan")
    assert Job.objects.count() == 1
    assert "Checking" in page.inner_text("#where")


def test_the_colours_are_the_systems_until_somebody_chooses(logged_in, hosts):
    page = logged_in("dana", "operator", color_scheme="dark")
    page.goto("/")
    assert page.get_attribute("html", "data-bs-theme") == "dark"
    page.click(".menu summary")
    page.click("[data-set-theme=light]")
    assert page.get_attribute("html", "data-bs-theme") == "light"
    page.goto("/migrations/")
    assert page.get_attribute("html", "data-bs-theme") == "light"
