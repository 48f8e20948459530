"""Hypervisors belong to a team; those that are there, to the one that everybody is a member of."""

import django.db.models.deletion
from django.db import migrations, models

import hosts.models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0003_teams"), ("hosts", "0001_initial")]
    operations = [
        migrations.AddField(
            model_name="hypervisor",
            name="team",
            field=models.ForeignKey(
                default=hosts.models.standard_team,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="hypervisors",
                to="accounts.team",
            ),
        ),
    ]
