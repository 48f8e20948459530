"""Every address that volmig answers."""

from django.contrib.auth import views as auth
from django.urls import include, path

from volmig import views

urlpatterns = [
    path("login/", views.login, name="login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    path("audit/", views.audit, name="audit"),
    path("healthz", views.health, name="health"),
    path("hosts/", include("hosts.urls")),
    path("", include("jobs.urls")),
]
