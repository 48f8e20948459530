"""Every address that volmig answers: those of its own, and by their names those of hosts and jobs."""

from django.urls import include, path

from volmig.accounts import views as accounts
from volmig.api import root as api
from volmig.record import evidence
from volmig.record import views as record

handler500 = "volmig.overload.fault"
urlpatterns = [
    path("login/", accounts.login, name="login"),
    path("login/code/", accounts.login_code, name="login_code"),
    path("logout/", accounts.logout, name="logout"),
    path("account/", accounts.account, name="account"),
    path("account/confirm/", accounts.confirm, name="confirm"),
    path("account/factor/", accounts.factor, name="factor"),
    path("account/factor/<slug:verb>/", accounts.change_factor, name="change_factor"),
    path("account/sessions/<int:pk>/end/", accounts.end_session, name="end_session"),
    path("account/tokens/add/", accounts.add_token, name="add_token"),
    path("account/tokens/<int:pk>/revoke/", accounts.revoke_token, name="revoke_token"),
    path("accounts/", accounts.everybody, name="accounts"),
    path("accounts/<int:pk>/", accounts.person, name="person"),
    path("accounts/<int:pk>/<slug:verb>/", accounts.change_person, name="change_person"),
    path("audit/", record.audit, name="audit"),
    path("audit/export.<slug:form>", record.export, name="audit_export"),
    path("evidence/", evidence.page, name="evidence"),
    path("evidence/keys.json", evidence.keys, name="evidence_keys"),
    path("evidence/heads.jsonl", evidence.published_heads, name="evidence_heads"),
    path("evidence/verify_evidence.py", evidence.verifier, name="evidence_verifier"),
    path("api/", api.reference, name="api_reference"),
    path("api/client", api.client, name="client"),
    path("api/v1/", api.urls),
    path("", include("hosts.urls")),
    path("", include("jobs.urls")),
]
