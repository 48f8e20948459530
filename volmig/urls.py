"""Every address that volmig answers."""

from django.urls import include, path

from hosts import views as hosts
from jobs import adoption_pages
from jobs import views as jobs
from volmig import evidence, teams, views
from volmig.api import description as api
from volmig.health import views as health

handler500 = "volmig.overload.fault"
urlpatterns = [
    path("login/", views.login, name="login"),
    path("login/code/", views.login_code, name="login_code"),
    path("logout/", views.logout, name="logout"),
    path("account/", views.account, name="account"),
    path("account/confirm/", views.confirm, name="confirm"),
    path("account/factor/", views.factor, name="factor"),
    path("account/factor/<slug:verb>/", views.change_factor, name="change_factor"),
    path("account/sessions/<int:pk>/end/", views.end_session, name="end_session"),
    path("account/tokens/add/", views.add_token, name="add_token"),
    path("account/tokens/<int:pk>/revoke/", views.revoke_token, name="revoke_token"),
    path("accounts/", views.everybody, name="accounts"),
    path("accounts/<int:pk>/", views.person, name="person"),
    path("accounts/<int:pk>/<slug:verb>/", views.change_person, name="change_person"),
    path("teams/", teams.teams, name="teams"),
    path("teams/add/", teams.team, name="add_team"),
    path("teams/<int:pk>/", teams.team, name="team"),
    path("teams/<int:pk>/remove/", teams.remove_team, name="remove_team"),
    path("teams/<int:pk>/policies/add/", teams.policy, name="add_policy"),
    path("teams/<int:pk>/policies/<int:policy>/", teams.policy, name="policy"),
    path("teams/<int:pk>/policies/<int:policy>/remove/", teams.remove_policy, name="remove_policy"),
    path("audit/", views.audit, name="audit"),
    path("audit/export.<slug:form>", views.export, name="audit_export"),
    path("evidence/", evidence.page, name="evidence"),
    path("evidence/keys.json", evidence.keys, name="evidence_keys"),
    path("evidence/heads.jsonl", evidence.published_heads, name="evidence_heads"),
    path("evidence/verify_evidence.py", evidence.verifier, name="evidence_verifier"),
    path("healthz", health.health, name="health"),
    path("healthz/live", health.live, name="health_live"),
    path("healthz/ready", health.readiness, name="health_ready"),
    path("metrics", health.figures, name="metrics"),
    path("processes/", health.processes, name="processes"),
    path("api/", api.reference, name="api_reference"),
    path("api/client", api.client, name="client"),
    path("api/v1/", api.urls),
    path("hosts/", include("hosts.urls")),
    path("instances/", hosts.instances, name="instances"),
    path("instances/<uuid:uuid>/", hosts.instance, name="instance"),
    path("adopt/", adoption_pages.adopt, name="adopt"),
    path("adopt/<slug:verb>/", adoption_pages.adopt_verb, name="adopt_verb"),
    path("checks/", jobs.checks, name="checks"),
    path("", include("jobs.urls")),
]
