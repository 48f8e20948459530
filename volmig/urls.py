"""Every address that volmig answers."""

from django.urls import include, path

from hosts import team_views
from hosts import views as hosts
from jobs.web import adoption, health, migrations, policies
from volmig.accounts.views import (
    account,
    add_token,
    change_factor,
    change_person,
    confirm,
    end_session,
    everybody,
    factor,
    login,
    login_code,
    logout,
    person,
    revoke_token,
)
from volmig.api import root as api
from volmig.record import evidence, views

handler500 = "volmig.overload.fault"
urlpatterns = [
    path("login/", login, name="login"),
    path("login/code/", login_code, name="login_code"),
    path("logout/", logout, name="logout"),
    path("account/", account, name="account"),
    path("account/confirm/", confirm, name="confirm"),
    path("account/factor/", factor, name="factor"),
    path("account/factor/<slug:verb>/", change_factor, name="change_factor"),
    path("account/sessions/<int:pk>/end/", end_session, name="end_session"),
    path("account/tokens/add/", add_token, name="add_token"),
    path("account/tokens/<int:pk>/revoke/", revoke_token, name="revoke_token"),
    path("accounts/", everybody, name="accounts"),
    path("accounts/<int:pk>/", person, name="person"),
    path("accounts/<int:pk>/<slug:verb>/", change_person, name="change_person"),
    path("teams/", team_views.teams, name="teams"),
    path("teams/add/", team_views.team, name="add_team"),
    path("teams/<int:pk>/", team_views.team, name="team"),
    path("teams/<int:pk>/remove/", team_views.remove_team, name="remove_team"),
    path("teams/<int:pk>/policies/add/", policies.policy, name="add_policy"),
    path("teams/<int:pk>/policies/<int:policy>/", policies.policy, name="policy"),
    path("teams/<int:pk>/policies/<int:policy>/remove/", policies.remove_policy, name="remove_policy"),
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
    path("adopt/", adoption.adopt, name="adopt"),
    path("adopt/<slug:verb>/", adoption.adopt_verb, name="adopt_verb"),
    path("checks/", migrations.checks, name="checks"),
    path("", include("jobs.urls")),
]
