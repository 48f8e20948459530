"""Pages of the disks that were replaced and are kept."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods

from hosts.models import Share
from jobs.models import Footprint, Job, Refused
from jobs.web.base import PAGE, show
from jobs.web.forms import ExtendForm
from volmig.accounts.roles import needs
from volmig.paging import page


@require_http_methods(["GET", "POST"])
def extend(request: HttpRequest, number: int) -> HttpResponse:
    """Until when the disk that is not in use is kept, and why; what was typed stays when it is refused."""
    job = Job.objects.with_names().find(request.user, "submit", pk=number)
    form = ExtendForm(request.POST or None)
    if request.method == "POST" and form.is_valid() and keep_longer(request, job, form):
        return redirect("jobs:job", number)
    status = 422 if form.errors else 200
    return render(request, "jobs/extend.html", {"job": job, "form": form, "kept": job.backup()}, status=status)


def keep_longer(request: HttpRequest, job: Job, form: ExtendForm) -> bool:
    """Hand it to the model; its refusals come back as errors of the form."""
    try:
        job.extend(request.user, form.until(), form.cleaned_data["reason"])
    except Refused as refused:
        for sentence in refused.sentences:
            form.add_error(None, sentence)
        return False
    messages.success(request, "It is kept longer; the audit log notes it.")
    return True


@require_GET
@needs("view")
def backups(request: HttpRequest) -> HttpResponse:
    """Every disk that a swap left over, what is due first; the space that they hold on each share."""
    rows = Footprint.objects.backups(request.user)
    clocked = rows.filter(keep_until__lte=timezone.now()) if "due" in request.GET else rows.exclude(keep_until=None)
    values = {
        "page": page(clocked, "keep_until", request.GET, PAGE),
        "only_due": "due" in request.GET,
        "on_trial": [] if "due" in request.GET else rows.filter(keep_until=None).order_by("pk"),
        "shares": Share.objects.visible_to(request.user).with_backups(request.user),
    }
    return show(request, "jobs/backups.html", "jobs/_backups.html", values)
