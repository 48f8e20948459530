"""How the pages draw things: icons, a status as icon and word, the place in the navigation."""

from functools import lru_cache
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

register = template.Library()

SPRITE = "vendor/lucide-1.62.0/sprite.svg"

# status -> word for people, icon, tone (the tone only colours; icon and word carry the meaning)
STATUSES = {
    "checking": ("Checking", "search", "run"),
    "planned": ("Planned", "file-check", "wait"),
    "preparing": ("Preparing", "play", "run"),
    "awaiting_approval": ("Awaiting approval", "hourglass", "ask"),
    "approved": ("Approved", "shield-check", "run"),
    "swapping": ("Swapping", "lock", "warn"),
    "on_trial": ("On trial", "clock", "ask"),
    "rolling_back": ("Rolling back", "undo-2", "warn"),
    "undoing": ("Undoing", "undo-2", "warn"),
    "purging": ("Purging", "trash-2", "warn"),
    "done": ("Done", "circle-check", "good"),
    "rolled_back": ("Rolled back", "undo-2", "flat"),
    "undone": ("Undone", "circle-x", "flat"),
    "purged": ("Purged", "trash-2", "flat"),
    "halted": ("Halted", "octagon-alert", "bad"),
}
OUTCOMES = {"failed", "blocked", "cancelled", "rejected"}  # the others say no more than the status
STEP_STATES = {
    "todo": ("to do", "circle"),
    "running": ("running", "play"),
    "done": ("done", "circle-check"),
    "failed": ("failed", "circle-x"),
    "skipped": ("skipped", "ban"),
    "undone": ("undone", "undo-2"),
}
SEVERITIES = {
    "blocks": ("Failed", "circle-x", "bad"),
    "warns": ("Warning", "triangle-alert", "warn"),
    "informs": ("Information", "info", "flat"),
}
MESSAGE_ICONS = {"success": "circle-check", "warning": "triangle-alert", "error": "circle-x", "danger": "circle-x"}


@register.simple_tag
@lru_cache(maxsize=1000)  # pages draw hundreds; the address of the sprite is the same while a process lives
def icon(name: str, label: str = "") -> SafeString:
    """One icon of the sprite; decorative unless `label` says what it means."""
    told = format_html('role="img" aria-label="{}"', label) if label else SafeString('aria-hidden="true"')
    return format_html('<svg class="ico" {}><use href="{}#{}"></use></svg>', told, static(SPRITE), name)


@register.filter
def message_icon(level: str) -> str:
    """The icon of one of Django's message levels."""
    return MESSAGE_ICONS.get(level, "info")


def badge(word: str, picture: str, tone: str) -> SafeString:
    """An icon and a word in a frame; the colour repeats what they say."""
    return format_html('<span class="state state-{}">{} {}</span>', tone, icon(picture), word)


@register.simple_tag
def status(job: Any) -> SafeString:
    """Where a job is, halted first: it stands beside every status."""
    if job.halt_reason:
        return badge(f"Halted while {STATUSES[job.status][0].lower()}", *STATUSES["halted"][1:])
    word, picture, tone = STATUSES[job.status]
    if job.outcome in OUTCOMES:
        word, tone = f"{word}: {job.outcome}", "bad" if job.outcome == "failed" else tone
    return badge(word, picture, tone)


@register.simple_tag
def severity(check: dict[str, Any]) -> SafeString:
    """A check's result; one that holds reads the same whatever it would have done."""
    return badge("Holds", "circle-check", "good") if check.get("ok") else badge(*SEVERITIES[check["severity"]])


@register.filter
def step_word(state: str) -> str:
    """The word for a step's state."""
    return STEP_STATES.get(state, (state, ""))[0]


@register.filter
def step_icon(state: str) -> str:
    """The icon for a step's state."""
    return STEP_STATES.get(state, ("", "circle"))[1]


@register.simple_tag(takes_context=True)
def nav_item(context: dict[str, Any], there: str, label: str, exact: bool = False) -> SafeString:
    """One entry of the navigation, marked when the page is at or below it."""
    if not there:
        return SafeString("")
    here = context["request"].path
    current = here == there if exact else here.startswith(there)
    mark = SafeString(' aria-current="page"') if current else ""
    return format_html('<li><a href="{}"{}>{}</a></li>', there, mark, label)


@register.simple_tag
def meter(place: Any) -> SafeString:
    """Used, reserved and free bytes as a bar; the figures stand beside it in words."""
    whole = place.size or 1
    used, held = 100 * (place.size - place.free) / whole, 100 * min(getattr(place, "held", 0), place.free) / whole
    return SafeString(  # numbers alone
        '<svg class="meter" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="free" width="100" height="4"/>'
        f'<rect class="used" width="{used:.2f}" height="4"/>'
        f'<rect class="held" x="{used:.2f}" width="{held:.2f}" height="4"/></svg>'
    )


@register.filter
def coded(text: str) -> SafeString:
    """Text in which `names` stand between backquotes, as HTML."""
    return format_html_join("", "{}", ((quoted(index, each),) for index, each in enumerate(text.split("`"))))


def quoted(index: int, part: str) -> SafeString | str:
    return format_html("<code>{}</code>", part) if index % 2 else part
