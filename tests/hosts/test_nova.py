"""Nova by HTTP against a cloud in memory: tokens, versions, short retries, and errors that say what they are."""

import threading
from dataclasses import replace

import pytest

from hosts.remote import nova
from hosts.remote.host import Access, Denied, Garbled, HostError, TooOld, Unreachable
from tests.fakenova import Cloud, Refusal
from tests.fakes import INSTANCE


@pytest.fixture
def cloud(monkeypatch):
    monkeypatch.setattr(nova, "PAUSES", (0.01, 0.01))
    fake = Cloud()
    yield fake
    nova.forget()
    fake.close()


@pytest.fixture
def way(cloud):
    return nova.connect(cloud.access())


def logins(cloud):
    return len([path for _, path, _ in cloud.calls if path.endswith("/auth/tokens")])


def test_one_login_serves_many_calls_and_an_expired_token_is_fetched_anew(cloud, way):
    assert [way.server(INSTANCE)["name"] for _ in range(3)] == ["db7"] * 3
    assert logins(cloud) == 1
    cloud.expire()
    assert way.server(INSTANCE)["name"] == "db7"
    assert logins(cloud) == 2


def test_a_change_with_an_expired_token_is_made_once(cloud, way):
    way.version()
    cloud.expire()
    status, request, _ = way.post(f"/servers/{INSTANCE}/action", {"os-stop": None})
    assert (status, cloud.server.vm_state) == (202, "stopped")
    assert [row["request_id"] for row in cloud.server.actions] == [request]


def test_the_microversion_is_the_newest_that_both_know(cloud, way):
    assert way.version() == "2.96"
    cloud.newest = (2, 80)
    nova.forget()
    assert nova.connect(cloud.access()).version() == "2.80"


def test_a_nova_without_locked_reason_is_refused_in_words(cloud, way):
    cloud.newest = (2, 72)
    with pytest.raises(TooOld, match=r"goes up to 2\.72.*needs 2\.73"):
        way.server(INSTANCE)


def test_a_read_is_tried_three_times(cloud, way):
    way.version()
    cloud.down = True
    with pytest.raises(Unreachable, match="503"):
        way.server(INSTANCE)
    assert cloud.counted()["GET /servers/ID"] == 3


def test_a_read_that_is_answered_the_second_time_is_fine(cloud, way, monkeypatch):
    way.version()
    answers = iter([503, 200])
    real = cloud.answer

    def flaky(*args):
        if next(answers) == 503:
            raise Refusal(503, "busy")
        return real(*args)

    monkeypatch.setattr(cloud, "answer", flaky)
    assert way.server(INSTANCE)["name"] == "db7"


def test_a_change_is_never_sent_twice(cloud, way):
    cloud.loses = {"os-stop"}
    with pytest.raises(Unreachable):
        way.post(f"/servers/{INSTANCE}/action", {"os-stop": None})
    assert cloud.asked("os-stop") == 1


def test_a_nova_that_is_down_at_first_is_not_taken_for_an_old_one(cloud, way):
    cloud.down = True
    with pytest.raises(Unreachable):
        way.server(INSTANCE)
    cloud.down = False
    assert way.server(INSTANCE)["name"] == "db7"


@pytest.mark.parametrize("down", ["keystone", "everything"])
def test_what_cannot_be_reached_passes_by_itself(cloud, down):
    access = cloud.access()
    if down == "keystone":
        cloud.keystone_down = True
    else:
        cloud.close()
    with pytest.raises(Unreachable):
        nova.connect(access).server(INSTANCE)


def test_a_wrong_secret_is_denied_and_does_not_pass_by_itself(cloud):
    auth = tuple((name, "wrong" if name.endswith("secret") else value) for name, value in cloud.access().auth)
    with pytest.raises(Denied, match="rejects the credential") as denied:
        nova.connect(replace(cloud.access(), auth=auth)).server(INSTANCE)
    assert "wrong" not in str(denied.value)


def test_what_the_policy_forbids_is_denied_in_novas_words(cloud, way):
    cloud.roles = ["member"]
    with pytest.raises(Denied, match="Policy doesn't allow"):
        way.services()


def test_a_server_that_is_gone_is_none_and_a_refused_change_is_an_answer(cloud, way):
    assert way.server("00000000-0000-4000-8000-000000000000") is None
    status, _, said = way.post(f"/servers/{INSTANCE}/action", {"os-start": None})
    assert (status, said) == (409, f"Cannot 'start' instance {INSTANCE} while it is in vm_state active")


def test_an_answer_that_is_no_json_is_an_error_and_no_traceback(cloud, way, monkeypatch):
    way.version()
    monkeypatch.setattr(cloud, "answer", lambda *_: ["no", "object"])
    with pytest.raises(HostError, match="is not JSON"):
        way.server(INSTANCE)


def test_a_name_that_no_clouds_yaml_has_is_an_error_in_words(tmp_path):
    path = tmp_path / "clouds.yaml"
    path.write_text("clouds: {}")
    with pytest.raises(HostError, match="lab"):
        nova.connect(Access("lab", "lab", str(path)))


def test_threads_share_a_session_and_a_token(cloud, way):
    way.version()
    cloud.expire()
    seen = []
    asking = [threading.Thread(target=lambda: seen.append(way.server(INSTANCE)["name"])) for _ in range(4)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert seen == ["db7"] * 4


def test_only_so_many_clouds_are_kept_open(cloud, monkeypatch):
    monkeypatch.setattr(nova, "KEPT", 2)
    for number in range(4):
        nova.connect(cloud.access(f"cloud {number}"))
    assert len(nova._open) == 2


def test_a_nova_from_before_microversions_is_too_old_and_not_asked_again(cloud, way, monkeypatch):
    told = cloud.versions()["version"]
    plain = {name: told[name] for name in told if name not in ("version", "min_version")}
    monkeypatch.setattr(cloud, "versions", lambda: {"version": plain})
    with pytest.raises(TooOld, match=r"goes up to 2\.1\."):
        way.server(INSTANCE)


@pytest.mark.parametrize("wrong", ["no compute in the catalogue", "a region that is not there"])
def test_a_cloud_without_the_endpoint_is_told_and_does_not_pass_by_itself(cloud, monkeypatch, wrong):
    access = cloud.access()
    if wrong == "a region that is not there":
        access = replace(access, region="two")
    else:
        real = cloud.service
        monkeypatch.setattr(cloud, "service", lambda kind, *more: real(kind.replace("compute", "paint"), *more))
    with pytest.raises(HostError, match=r"no such endpoint.*Check the region") as told:
        nova.connect(access).server(INSTANCE)
    assert not isinstance(told.value, Unreachable)


def test_a_clouds_yaml_without_a_password_is_an_error_in_words(cloud, tmp_path):
    path = tmp_path / "clouds.yaml"
    path.write_text(f"clouds: {{lab: {{auth: {{auth_url: '{cloud.url}/identity/v3', username: volmig}}}}}}")
    with pytest.raises(HostError, match=r"password is a required attribute\. Complete the credential"):
        nova.connect(Access("lab", "lab", str(path))).server(INSTANCE)


def test_a_fault_of_volmig_itself_is_not_put_down_to_the_cloud(way, monkeypatch):
    way.version()
    monkeypatch.setattr(way.compute, "request", lambda *_, **__: {}["nothing"])
    with pytest.raises(KeyError):
        way.server(INSTANCE)


@pytest.mark.parametrize("status", [400, 404])
def test_what_keystone_does_not_understand_does_not_pass_by_itself(cloud, monkeypatch, status):
    def refuse(body):
        raise Refusal(status, "no such path")

    monkeypatch.setattr(cloud, "log_in", refuse)
    with pytest.raises(HostError, match=f"Keystone answered {status}") as told:
        nova.connect(cloud.access()).who()
    assert not isinstance(told.value, Unreachable)


def test_a_certificate_that_is_not_believed_asks_for_the_ca_file(cloud):
    auth = tuple((name, value.replace("http:", "https:")) for name, value in cloud.access().auth)
    with pytest.raises(HostError, match=r"certificate is not trusted.*Give the CA file") as told:
        nova.connect(replace(cloud.access(), auth=auth)).server(INSTANCE)
    assert not isinstance(told.value, Unreachable)


def test_a_request_that_nova_does_not_take_is_an_error_in_its_words(cloud, way, monkeypatch):
    def refuse(*_):
        raise Refusal(400, "Invalid marker.")

    way.version()
    monkeypatch.setattr(cloud, "answer", refuse)
    with pytest.raises(HostError, match="400 Invalid marker"):
        way.servers("x", 10)


@pytest.mark.parametrize(("status", "error"), [(200, Garbled), (403, Denied), (409, HostError)])
def test_the_page_of_a_proxy_in_front_of_nova_is_no_answer(cloud, way, monkeypatch, status, error):
    def page(handler, *_):
        handler.send_response(status)
        handler.send_header("Content-Length", "6")
        handler.end_headers()
        handler.wfile.write(b"<html>")

    way.version()
    monkeypatch.setattr(cloud.http.RequestHandlerClass, "reply", page)
    with pytest.raises(error):
        way.services()


def test_hypervisors_are_read_to_the_last_page(cloud, way):
    cloud.services = {f"cmp-{number}": cloud.services["dst"] for number in range(1001)}
    assert len({row["hypervisor_hostname"] for row in way.hypervisors()}) == 1001
    assert [status for _, path, status in cloud.calls if path.endswith("/os-hypervisors/detail")] == [200] * 3
