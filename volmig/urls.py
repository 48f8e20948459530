"""Every address that volmig answers."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.contrib.auth import views as auth
from django.urls import include, path

from volmig import views

urlpatterns = [
    path("login/", auth.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    path("audit/", views.audit, name="audit"),
    path("healthz", views.health, name="health"),
    path("hosts/", include("hosts.urls")),
]
if find_spec("jobs.urls"):
    urlpatterns.append(path("", include("jobs.urls")))


def websocket_routes() -> list[Any]:
    if not find_spec("jobs.live"):
        return []
    return list(import_module("jobs.live").routes)
