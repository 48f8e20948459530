"""Teams, and the one that everything belongs to until somebody says otherwise."""

from django.conf import settings
from django.db import migrations, models


def make(apps, schema_editor):
    apps.get_model("accounts", "Team").objects.get_or_create(name="everybody", defaults={"everybody": True})


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_logins"), migrations.swappable_dependency(settings.AUTH_USER_MODEL)]
    operations = [
        migrations.CreateModel(
            name="Team",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                ("everybody", models.BooleanField(default=False, verbose_name="everybody with a role is a member")),
                ("members", models.ManyToManyField(blank=True, related_name="teams", to=settings.AUTH_USER_MODEL)),
            ],
            options={"ordering": ["name"]},
        ),
        migrations.RunPython(make, migrations.RunPython.noop),
    ]
