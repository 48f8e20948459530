import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("volmig", "0004_task_begun"),
    ]

    operations = [
        migrations.CreateModel(
            name="RegisteredKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=40, unique=True)),
                ("fingerprint", models.CharField(max_length=64)),
                ("host", models.CharField(max_length=100)),
                ("path", models.CharField(max_length=500)),
                ("registered_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
        migrations.CreateModel(
            name="Machine",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("place", models.CharField(max_length=32)),
                ("kind", models.CharField(blank=True, max_length=10)),
                ("host", models.CharField(max_length=100)),
                ("settings", models.JSONField(default=dict)),
                ("seen_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("place", "kind"), name="machine_of_a_kind")],
            },
        ),
    ]
