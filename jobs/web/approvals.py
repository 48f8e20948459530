"""Pages of requests for approval: the inbox, one request, and decisions."""

import datetime as dt

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from jobs.models import Approval, Refused
from jobs.web.base import PAGE, show
from jobs.web.forms import DecisionForm
from jobs.web.review import Review
from volmig.accounts import factors
from volmig.accounts.roles import may, needs
from volmig.accounts.step_up import typed_at
from volmig.refusals import Sentence


@require_GET
@needs("view")
def approvals(request: HttpRequest) -> HttpResponse:
    """What waits for this person, what waits for others, and what was decided lately."""
    rows = Approval.objects.visible_to(request.user).with_names()
    waiting, undecided = Approval.objects.inbox(request.user), Approval.objects.undecided().values("pk")
    mine = rows.filter(pk__in=waiting.values("pk")).order_by("created_at")
    others = rows.filter(pk__in=undecided).exclude(pk__in=waiting.values("pk")).order_by("created_at")
    closed = rows.exclude(pk__in=undecided).prefetch_related("decisions__person").order_by("-pk")[:PAGE]
    return show(
        request, "jobs/approvals.html", "jobs/_approvals.html", {"mine": mine, "others": others, "closed": closed}
    )


@require_GET
@needs("view")
def count(request: HttpRequest) -> HttpResponse:
    """How much waits for this person, for the navigation, which asks again when something was asked or decided."""
    return render(request, "jobs/_count.html", {"waiting_approvals": Approval.objects.inbox(request.user).count()})


@require_http_methods(["GET", "POST"])
def approval(request: HttpRequest, pk: int) -> HttpResponse:
    """Everything a yes stands on, and the form to say it."""
    rows = Approval.objects.select_related("job__source", "job__relay", "job__destination", "requester", "last_editor")
    asked = rows.find(request.user, "approve" if request.method == "POST" else "view", pk=pk)
    verdict = request.POST.get("verdict", "")
    if verdict == "withdraw":
        return withdraw(request, asked)
    form = DecisionForm(request, asked)
    if request.method == "POST" and form.is_valid() and decide(request, asked, verdict, form):
        return redirect("jobs:job", asked.job_id)
    values = {
        "asked": asked,
        "job": asked.job,
        "form": form,
        "why_not": asked.why_not(request.user),
        "review": Review(asked),
        "needs_factor": may(request.user, "approve") and factors.is_missing(request.user),
        "mine": asked.consents().filter(person_id=request.user.pk).exists() and asked.state in ("open", "approved"),
    }
    if typed := typed_at(request):
        values["typed_at"] = dt.datetime.fromtimestamp(typed, dt.UTC)
    response = show(request, "jobs/approval.html", "jobs/_request.html", values)
    response.status_code = 422 if form.errors else 200
    return response


def withdraw(request: HttpRequest, asked: Approval) -> HttpResponse:
    """Take one's own yes back; that is safe, so no password is asked for."""
    try:
        asked.withdraw(request.user, request.POST.get("reason", ""))
        messages.success(request, "Your approval is withdrawn; the audit log notes it.")
    except Refused as refused:
        for sentence in refused.sentences:
            messages.error(request, sentence)
    return redirect("jobs:approval", asked.pk)


def decide(request: HttpRequest, asked: Approval, verdict: str, form: DecisionForm) -> bool:
    """Say yes or no; refusals come back as errors of the form."""
    try:
        if verdict == "approve":
            asked.approve(request.user, form.cleaned_data["digest"], form.cleaned_data["reason"])
        elif verdict == "reject":
            asked.reject(request.user, form.cleaned_data["reason"])
        else:
            raise Refused(Sentence("no-verdict", "Choose approve or reject."))
    except Refused as refused:
        for sentence in refused.sentences:
            form.add_error(None, sentence)
        return False
    return True
