"""Roles and what they allow."""

import pytest
from django.contrib.auth.models import AnonymousUser, Group

from volmig.accounts import factors
from volmig.accounts.roles import ALLOWS, SENTENCES, may, why_not
from volmig.apps import roles_are_known

pytestmark = pytest.mark.django_db


def test_a_migration_made_every_role():
    assert set(Group.objects.values_list("name", flat=True)) >= set(ALLOWS)


@pytest.mark.parametrize(
    ("role", "verbs"),
    [
        ("viewer", {"view"}),
        ("operator", {"view", "submit"}),
        ("approver", {"view", "approve"}),
        ("administrator", {"view", "administer", "audit"}),
        ("auditor", {"view", "audit"}),
    ],
)
def test_a_role_allows_its_verbs_and_no_other(person, role, verbs):
    user = person("ann", role)
    assert {verb for verb in SENTENCES if may(user, verb)} == verbs


def test_nobody_without_a_role_may_anything(person):
    people = [person("ann"), AnonymousUser()]
    assert not any(may(user, verb) for verb in SENTENCES for user in people)


def test_a_disabled_superuser_may_nothing(person):
    assert not may(person("root", is_superuser=True, is_active=False), "view")


def test_a_superuser_has_every_role(person):
    root = person("root", is_superuser=True)
    assert all(may(root, verb) for verb in SENTENCES)


def test_an_unknown_verb_is_a_mistake_in_the_code(person):
    with pytest.raises(ValueError, match="unknown verb"):
        may(person("ann", "viewer"), "fly")


@pytest.mark.django_db
@pytest.mark.parametrize("superuser", [False, True])
def test_a_role_that_needs_a_second_factor_is_worth_nothing_without_one(person, settings, superuser):
    settings.NEED_TOTP = ["administrator", "operator"]
    ada = person("ada", "administrator", "viewer", is_superuser=superuser)
    assert may(ada, "view")
    assert not may(ada, "administer")
    assert why_not(ada, "administer", [])[0].code == "no-second-factor"
    factors.begin(ada)
    factors.App.objects.update(confirmed=True)
    assert may(type(ada).objects.get(pk=ada.pk), "administer")


def test_a_role_that_does_not_exist_stops_volmig_at_start(settings):
    settings.NEED_TOTP = ["admin"]
    assert [error.id for error in roles_are_known()] == ["volmig.R1"]
