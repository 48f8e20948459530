"""Make the groups that are volmig's roles."""

from django.db import migrations

ROLES = ["viewer", "operator", "approver", "administrator", "auditor"]


def make(apps, schema_editor):
    for name in ROLES:
        apps.get_model("auth", "Group").objects.get_or_create(name=name)


class Migration(migrations.Migration):
    dependencies = [("auth", "0012_alter_user_first_name_max_length")]
    operations = [migrations.RunPython(make, migrations.RunPython.noop)]
