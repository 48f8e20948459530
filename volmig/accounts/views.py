"""Logging in and out, accounts and the audit page."""

import datetime as dt
import math
import time
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth import get_user_model, update_session_auth_hash
from django.contrib.auth import login as log_in
from django.contrib.auth import logout as log_out
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.views import LoginView, LogoutView
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Count, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_http_methods

from volmig.accounts import factors, people, step_up
from volmig.accounts.models import Login, Token
from volmig.accounts.roles import ALLOWS, SENTENCES, may, needs
from volmig.accounts.throttle import Attempt, remember_device
from volmig.accounts.tokens import LONGEST
from volmig.posting import posted_from
from volmig.record.models import Event

CODE_SECONDS = 300  # within which the code has to follow the password
SLIPS = 5  # wrong passwords of which nobody is warned


class PasswordPage(LoginView):
    """The first page of a login: for people with a second factor it is followed by the page that asks for the code."""

    redirect_authenticated_user = True

    def form_valid(self, form: Any) -> HttpResponse:
        """Logs the person in, or leads to the page of the second factor first."""
        person = form.get_user()
        if not factors.has(person):
            return super().form_valid(form)
        self.request.session.cycle_key()
        self.request.session["half"] = {
            "person": person.pk, "backend": person.backend, "at": time.time(), "next": self.get_success_url(),
        }  # fmt: skip
        return redirect("login_code")


@require_http_methods(["GET", "POST"])
@login_not_required
def login(request: HttpRequest) -> HttpResponseBase:
    """Logs in, and notes when: approving asks for the password again once it was typed too long ago in this session."""
    page = PasswordPage.as_view()
    if request.method != "POST" or request.user.is_authenticated:  # Django sends these on, whatever they post
        return page(request)
    request.session.pop("half", None)
    attempt = Attempt.to_log_in(request, "login", name_typed(request))
    if until := attempt.begin():
        return locked_out(request, until)
    response = page(request)
    if not request.user.is_authenticated and not half_way(request):
        until = attempt.wrong()
        return locked_out(request, until) if until else response
    attempt.right()
    if request.user.is_authenticated:
        note_login(request, response)
    return response


def name_typed(request: HttpRequest) -> str:
    """The name as the form hands it to the check of the password: stripped and in one form of Unicode (NFKC).

    Counted as it was sent, a name with a space more would be another name, with tries of its own.
    """
    field = PasswordPage.form_class(request).fields["username"]
    return str(field.to_python(request.POST.get("username", "")))


def half_way(request: HttpRequest) -> dict[str, Any]:
    """Who typed the right password a moment ago and now has to give a code; empty when nobody did."""
    half: dict[str, Any] = request.session.get("half") or {}
    return half if half and abs(time.time() - half["at"]) < CODE_SECONDS else {}  # a clock may have been set back


@require_http_methods(["GET", "POST"])
@login_not_required
def login_code(request: HttpRequest) -> HttpResponse:
    """The second page of a login, for people with a second factor."""
    if request.user.is_authenticated:
        return redirect("overview")
    half = half_way(request)
    person = get_user_model().objects.filter(pk=half.get("person", 0), is_active=True).first()
    if person is None:
        return redirect("login")
    if request.method == "POST":
        attempt = Attempt.to_log_in(request, "code", person.get_username())
        if until := attempt.begin():
            return locked_out(request, until)
        if how := factors.is_right(person, request.POST.get("code", "")):
            attempt.right()
            return enter(request, person, half, how)
        if until := attempt.wrong():
            return locked_out(request, until)
    return render(request, "registration/code.html", status=422 if request.method == "POST" else 200)


def enter(request: HttpRequest, person: Any, half: dict[str, Any], how: str) -> HttpResponse:
    """Completes a login in two steps; a used recovery code is an event of the audit log."""
    del request.session["half"]
    log_in(request, person, backend=half["backend"])
    response = redirect(half["next"])
    note_login(request, response)
    if how == "recovery code":
        left = factors.codes_left(person)
        Event.append("person.recovery_code", actor=person, object=person.get_username(), data={"left": left})
        messages.warning(request, f"You used a recovery code; {left} are left. Your account page creates new ones.")
    return response


def note_login(request: HttpRequest, response: HttpResponseBase) -> None:
    """Starts the session's limits, reports wrong passwords since the last login, and writes the event."""
    person: Any = request.user
    request.session["password_at"] = time.time()
    Login.objects.of(request)
    if wrong := guessed_since(person):
        said = f"{wrong} wrong passwords were entered for your name since your last login. If that was not you, "
        messages.warning(request, f"{said}inform an administrator.")
    Event.append("person.login", actor=person, object=person.get_username())
    remember_device(request, response, person)


def guessed_since(person: Any) -> int:
    """How many wrong passwords the audit log has for a name since its last login; 0 when so few that it was a slip."""
    last = Event.objects.filter(actor=person, action="person.login").order_by("-seq").first()
    refused = Event.objects.filter(object=person.get_username(), action="person.login_refused")
    since = refused.filter(seq__gt=last.seq) if last else refused
    wrong = sum(data.get("wrong", 0) for data in since.values_list("data", flat=True))
    return wrong if wrong >= SLIPS else 0


def locked_out(request: HttpRequest, until: dt.datetime) -> HttpResponse:
    """Answers a login for which no password or code is checked."""
    page = render(request, "registration/locked.html", {"until": until}, status=429)
    page["Retry-After"] = max(1, math.ceil((until - timezone.now()).total_seconds()))
    return page


@posted_from("overview")
def logout(request: HttpRequest) -> HttpResponseBase:
    """Writes the event and ends the session."""
    Event.append("person.logout", actor=request.user, object=request.user.get_username())
    return LogoutView.as_view()(request)


@require_http_methods(["GET", "POST"])
def account(request: HttpRequest) -> HttpResponse:
    """One's own sessions, and the change of one's password."""
    person: Any = request.user
    typed = request.method == "POST"
    form = PasswordChangeForm(person, request.POST) if typed else PasswordChangeForm(person)
    for field in form.fields.values():
        field.widget.attrs |= {"class": "form-control", "autofocus": False}
    if typed and change_password(request, form):
        return redirect("account")
    logins = Login.objects.alive().filter(person=person)
    tokens = Token.objects.alive().filter(person=person)
    values = {
        "form": form,
        "logins": logins,
        "tokens": tokens,
        "this": request.session.session_key,
        **factor_of(person),
    }
    return render(request, "registration/account.html", values, status=422 if form.errors else 200)


@transaction.atomic
def change_password(request: HttpRequest, form: PasswordChangeForm) -> bool:
    """Changes the password and ends the other sessions; tells whether there is nothing to correct."""
    person = step_up.alone(request)
    if until := step_up.closed_until(person):
        messages.error(request, f"Too many wrong passwords: try again at {timezone.localtime(until):%H:%M %Z}.")
        return True
    if form.has_error("old_password", "password_incorrect"):
        Event.append("person.password_refused", actor=person, object=person.get_username())
    if not form.is_valid():
        return False
    form.save()
    ended = stay_alone(request, form.user)
    Event.append("person.password", actor=person, object=person.get_username(), data=ended)
    messages.success(request, "Your password is changed. Your other sessions and your tokens have ended.")
    return True


def stay_alone(request: HttpRequest, person: Any) -> dict[str, int]:
    """Keeps this session after a change of password, under a new key; returns how many others, and tokens, ended."""
    before = request.session.session_key
    ended = Login.objects.filter(person=person).exclude(session_key=before).end()
    update_session_auth_hash(request, person)
    Login.objects.filter(session_key=before).update(session_key=request.session.session_key)
    request.session["password_at"] = time.time()
    return {"sessions_ended": ended, "tokens_revoked": Token.objects.filter(person=person).revoke()}


def factor_of(person: Any) -> dict[str, Any]:
    """What the account page shows of the second factor."""
    return {
        "has_factor": factors.has(person),
        "codes_left": factors.codes_left(person),
        "needs_factor": factors.is_missing(person) and may(person, "approve"),
    }


class PasswordForm(forms.Form):
    """What only the person may do, and not whoever sits at a screen that was left open."""

    password = forms.CharField(label="Your password", widget=forms.PasswordInput)
    password.widget.attrs["autocomplete"] = "current-password"

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request.POST or None)
        self.request = request
        for field in self.fields.values():
            ticks = isinstance(field.widget, forms.CheckboxSelectMultiple)
            field.widget.attrs["class"] = "form-check-input" if ticks else "form-control"

    def clean_password(self) -> str:
        """Counts the try; ValidationError for a wrong password or a closed limit."""
        typed = str(self.cleaned_data["password"])
        if why := step_up.why_wrong(self.request, typed):
            raise ValidationError(why)
        return typed


class ConfirmForm(forms.Form):
    """Proof that whoever sits at the screen is who logged in: the password, and a code of who has a second factor."""

    password = forms.CharField(label="Your password", widget=forms.PasswordInput)
    password.widget.attrs["autocomplete"] = "current-password"
    code = forms.CharField(label="Six-digit code from your app, or a recovery code", max_length=20)
    code.widget.attrs["autocomplete"] = "one-time-code"

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request.POST or None)
        if not factors.has(request.user):
            del self.fields["code"]
        for field in self.fields.values():
            field.widget.attrs["class"] = "form-control"


@require_http_methods(["GET", "POST"])
def confirm(request: HttpRequest) -> HttpResponse:
    """Asks for the password (and code) again before sensitive changes, then leads on to `next`."""
    following = request.POST.get("next") or request.GET.get("next") or ""
    if not url_has_allowed_host_and_scheme(following, {request.get_host()}, require_https=request.is_secure()):
        following = reverse("overview")
    form = ConfirmForm(request)
    if request.method == "POST" and form.is_valid():
        why = step_up.proved(request, form.cleaned_data["password"], form.cleaned_data.get("code", ""))
        if not why:
            return redirect(following)
        form.add_error(None, why)
    values = {"form": form, "next": following, "minutes": step_up.FRESH // 60}
    return render(request, "registration/confirm.html", values, status=422 if form.errors else 200)


class FactorForm(PasswordForm):
    """What a change of one's second factor takes: the password, and for a new app the code that it shows."""

    code = forms.CharField(label="Six-digit code from the app", max_length=20)
    code.widget.attrs["autocomplete"] = "one-time-code"
    field_order = ("code", "password")

    def __init__(self, request: HttpRequest, *, code: bool) -> None:
        super().__init__(request)
        if not code:
            del self.fields["code"]


class TokenForm(PasswordForm):
    """A new token: what for, what it may do of what its person may, for how long."""

    name = forms.CharField(label="Purpose", max_length=100)
    verbs = forms.MultipleChoiceField(
        label="Scope, besides reading", required=False, widget=forms.CheckboxSelectMultiple
    )
    days = forms.IntegerField(label="Valid for (days)", min_value=1, max_value=LONGEST, initial=30)
    field_order = ("name", "verbs", "days", "password")

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request)
        verbs: Any = self.fields["verbs"]
        verbs.choices = [(verb, words) for verb, words in TOKEN_VERBS.items() if may(request.user, verb)]
        if not verbs.choices:
            del self.fields["verbs"]

    def make(self) -> str:
        """Its letters, which are shown once."""
        told = self.cleaned_data
        return people.make_token(self.request.user, told["name"], told.get("verbs", []), told["days"])


TOKEN_VERBS = {
    "submit": SENTENCES["submit"],
    "approve": f"{SENTENCES['approve']}: valid for 15 minutes, whatever you enter below",
    "administer": SENTENCES["administer"],
    "audit": SENTENCES["audit"],
}


@require_http_methods(["GET", "POST"])
def factor(request: HttpRequest) -> HttpResponse:
    """Sets up an app as second factor, in place of the one that there may be."""
    if factors.has(request.user) and not step_up.is_fresh(request):
        return step_up.confirm(request)
    form = FactorForm(request, code=True)
    if request.method == "POST" and form.is_valid():
        if codes := factors.confirm(request.user, form.cleaned_data["code"]):
            return changed_factor(request, "person.factor_add", codes)
        form.add_error("code", "Wrong code: it is not the current code of the app. Wait a moment before you try again.")
    values = {"form": form, "app": factors.begin(request.user), "has_factor": factors.has(request.user)}
    return render(request, "registration/factor.html", values, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
def change_factor(request: HttpRequest, verb: str) -> HttpResponse:
    """Makes new recovery codes, or takes the second factor away."""
    if verb not in FACTOR_WORDS or not factors.has(request.user):
        raise Http404
    if not step_up.is_fresh(request):
        return step_up.confirm(request)
    form = FactorForm(request, code=False)
    if request.method == "POST" and form.is_valid():
        if verb == "new-codes":
            return changed_factor(request, "person.recovery_codes", factors.new_codes(request.user))
        factors.remove(request.user)
        return changed_factor(request, "person.factor_remove", [])
    values = {"form": form, "words": FACTOR_WORDS[verb]}
    return render(request, "registration/change_factor.html", values, status=422 if form.errors else 200)


FACTOR_WORDS = {
    "new-codes": ("Create new recovery codes", "Your existing codes then no longer work."),
    "remove": ("Remove second factor", "You then log in with the password alone."),
}


def changed_factor(request: HttpRequest, action: str, codes: list[str]) -> HttpResponse:
    """Ends the other sessions, which were begun without it; shows the recovery codes, this once."""
    person: Any = request.user
    ended = Login.objects.filter(person=person).exclude(session_key=request.session.session_key).end()
    data = {"sessions_ended": ended, "tokens_revoked": Token.objects.filter(person=person).revoke()}
    Event.append(action, actor=person, object=person.get_username(), data=data)
    if not codes:
        messages.success(request, "Your second factor is removed. Your other sessions have ended.")
        return redirect("account")
    return render(request, "registration/codes.html", {"codes": codes})


@require_http_methods(["GET", "POST"])
@needs("view")
def add_token(request: HttpRequest) -> HttpResponse:
    """Makes a token for a program of one's own, and shows it, this once."""
    form = TokenForm(request)
    if request.method == "POST" and form.is_valid():
        return render(request, "registration/token.html", {"letters": form.make()})
    return render(request, "registration/add_token.html", {"form": form}, status=422 if form.errors else 200)


@posted_from("account")
def revoke_token(request: HttpRequest, pk: int) -> HttpResponse:
    """Ends one of one's own tokens."""
    token = get_object_or_404(Token.objects.alive().filter(person_id=request.user.pk), pk=pk)
    people.revoke_token(token, request.user)
    messages.success(request, f"The token “{token.name}” is revoked.")
    return redirect("account")


@posted_from("account")
def end_session(request: HttpRequest, pk: int) -> HttpResponse:
    """Ends one of one's own sessions; this one, too."""
    login = get_object_or_404(Login.objects.alive().filter(person_id=request.user.pk), pk=pk)
    people.end_session(login)
    if login.session_key == request.session.session_key:
        log_out(request)
        return redirect("login")
    messages.success(request, "That session has ended.")
    return redirect("account")


@require_GET
@needs("administer")
def everybody(request: HttpRequest) -> HttpResponse:
    """All people: roles, active or disabled, last login."""
    alive = Count("logins", filter=Q(logins__in=Login.objects.alive()), distinct=True)
    persons = get_user_model().objects.annotate(alive=alive).prefetch_related("groups").order_by("username")
    return render(request, "registration/accounts.html", {"persons": persons})


@require_GET
@needs("administer")
def person(request: HttpRequest, pk: int) -> HttpResponse:
    """One person, and what an administrator may change of them."""
    person = get_object_or_404(get_user_model(), pk=pk)
    values = {
        "person": person,
        "why_not": people.why_not_change(person, request.user),
        "roles": [(role, [SENTENCES[verb] for verb in sorted(ALLOWS[role])]) for role in ALLOWS],
        "has": set(person.groups.values_list("name", flat=True)),
        "logins": Login.objects.alive().filter(person=person),
        "tokens": Token.objects.alive().filter(person=person),
        **factor_of(person),
    }
    return render(request, "registration/person.html", values)


CHANGES: dict[str, Callable[[HttpRequest, int], object]] = {
    "disable": lambda request, pk: people.set_active(pk, False, request.user),
    "enable": lambda request, pk: people.set_active(pk, True, request.user),
    "roles": lambda request, pk: people.set_roles(pk, request.POST.getlist("role"), request.user),
    "end-sessions": lambda request, pk: people.end_sessions(pk, request.user),
    "remove-factor": lambda request, pk: people.remove_factor(pk, request.user),
}


@posted_from("person", "pk", verbs=CHANGES)
@needs("administer")
@step_up.fresh
def change_person(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """Disables, enables, sets roles or ends sessions; the refusals are those of volmig.accounts.people."""
    try:
        CHANGES[verb](request, pk)
    except ValidationError as error:
        raise PermissionDenied(" ".join(error.messages)) from error
    messages.success(request, "Done; the audit log notes it.")
    return redirect("person", pk)
