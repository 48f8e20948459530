"""Every address that volmig answers."""

from django.urls import include, path

from volmig import views

urlpatterns = [
    path("login/", views.login, name="login"),
    path("logout/", views.logout, name="logout"),
    path("audit/", views.audit, name="audit"),
    path("healthz", views.health, name="health"),
    path("hosts/", include("hosts.urls")),
    path("", include("jobs.urls")),
]
