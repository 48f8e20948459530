"""Every address that volmig answers."""

from django.urls import include, path

from volmig import views

urlpatterns = [
    path("login/", views.login, name="login"),
    path("logout/", views.logout, name="logout"),
    path("account/", views.account, name="account"),
    path("account/sessions/<int:pk>/end/", views.end_session, name="end_session"),
    path("accounts/", views.everybody, name="accounts"),
    path("accounts/<int:pk>/", views.person, name="person"),
    path("accounts/<int:pk>/<slug:verb>/", views.change_person, name="change_person"),
    path("teams/", views.teams, name="teams"),
    path("teams/add/", views.team, name="add_team"),
    path("teams/<int:pk>/", views.team, name="team"),
    path("teams/<int:pk>/remove/", views.remove_team, name="remove_team"),
    path("audit/", views.audit, name="audit"),
    path("audit/export.<slug:form>", views.export, name="audit_export"),
    path("healthz", views.health, name="health"),
    path("hosts/", include("hosts.urls")),
    path("", include("jobs.urls")),
]
