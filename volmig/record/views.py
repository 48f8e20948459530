"""Pages of the audit log: search and export."""

from django import forms
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from volmig.accounts.roles import needs
from volmig.paging import page
from volmig.record.export import FORMATS, stream
from volmig.record.models import Event, EventQuerySet


class EventFilter(forms.Form):
    """Each field that is filled in narrows the list."""

    who = forms.CharField(required=False)
    what = forms.CharField(required=False)
    on = forms.CharField(required=False)
    job = forms.IntegerField(label="Migration", required=False, min_value=1)
    since = forms.DateTimeField(required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"}))

    def narrowed(self) -> EventQuerySet:
        """The events that fit; all of them when a filter cannot be understood."""
        wanted = self.cleaned_data if self.is_valid() else {}
        events = Event.objects.all()
        for name, value in wanted.items():
            if value:
                events = getattr(events, self.LOOKUPS[name])(value)
        return events

    LOOKUPS = {"who": "by", "what": "like", "on": "about", "job": "of_job", "since": "since"}


@require_GET
@needs("audit")
def audit(request: HttpRequest) -> HttpResponse:
    """The page of events with its filters, 100 at a time."""
    form = EventFilter(request.GET)
    for field in form.fields.values():
        field.widget.attrs["class"] = "form-control"
    found = page(form.narrowed(), "-seq", request.GET, 100, key="seq")
    return render(request, "record/audit.html", {"page": found, "form": form})


@require_GET
@needs("audit")
def export(request: HttpRequest, form: str) -> StreamingHttpResponse:
    """The events that fit the audit page's filters, as a file; that somebody took it is itself an event."""
    wanted = EventFilter(request.GET)
    if form not in FORMATS:
        raise Http404
    if not wanted.is_valid():
        raise BadRequest("A filter cannot be understood, so nothing was exported.")
    filters = {name: value for name, value in wanted.cleaned_data.items() if value}
    last = Event.append("audit.export", actor=request.user, data={"format": form, "filters": filters})
    events = wanted.narrowed().filter(seq__lte=last.seq)
    kind, header, write = FORMATS[form]
    name = f"volmig-audit-{timezone.now():%Y%m%d-%H%M%S}.{form}"
    told = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(stream(events, header, write), content_type=kind, headers=told)
