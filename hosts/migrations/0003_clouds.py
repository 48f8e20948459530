"""Clouds with Nova: how they are entered, what was read of them, and what Nova calls a hypervisor."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("hosts", "0002_teams"),
    ]

    operations = [
        migrations.AddField(
            model_name="cloud",
            name="auth",
            field=models.JSONField(blank=True, default=dict),
        ),
        migrations.AddField(
            model_name="cloud",
            name="auth_type",
            field=models.CharField(
                blank=True,
                choices=[("v3applicationcredential", "application credential"), ("v3password", "user and password")],
                max_length=40,
            ),
        ),
        migrations.AddField(
            model_name="cloud",
            name="ca_file",
            field=models.CharField(blank=True, max_length=255, verbose_name="CA file"),
        ),
        migrations.AddField(
            model_name="cloud",
            name="calls",
            field=models.JSONField(blank=True, default=list),
        ),
        migrations.AddField(
            model_name="cloud",
            name="checked_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="cloud",
            name="entry",
            field=models.CharField(blank=True, max_length=100, verbose_name="name in clouds.yaml"),
        ),
        migrations.AddField(
            model_name="cloud",
            name="last_error",
            field=models.TextField(blank=True),
        ),
        migrations.AddField(
            model_name="cloud",
            name="marker",
            field=models.CharField(blank=True, max_length=36),
        ),
        migrations.AddField(
            model_name="cloud",
            name="region",
            field=models.CharField(blank=True, max_length=100),
        ),
        migrations.AddField(
            model_name="cloud",
            name="round_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="cloud",
            name="secret",
            field=models.TextField(blank=True),
        ),
        migrations.AddField(
            model_name="cloud",
            name="seen_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="cloud",
            name="tried_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="cloud",
            name="verify",
            field=models.BooleanField(default=True, verbose_name="verify its certificate"),
        ),
        migrations.AddField(
            model_name="cloud",
            name="version",
            field=models.CharField(blank=True, max_length=10),
        ),
        migrations.AddField(
            model_name="hypervisor",
            name="nova_host",
            field=models.CharField(blank=True, max_length=255, verbose_name="name in Nova"),
        ),
        migrations.AlterField(
            model_name="cloud",
            name="control",
            field=models.CharField(
                choices=[("libvirt", "libvirt on each hypervisor"), ("openstack", "Nova, through OpenStack's API")],
                default="libvirt",
                max_length=20,
            ),
        ),
        migrations.CreateModel(
            name="Compute",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=255)),
                ("host", models.CharField(max_length=255)),
                ("kind", models.CharField(blank=True, max_length=40)),
                ("state", models.CharField(blank=True, max_length=20)),
                ("status", models.CharField(blank=True, max_length=20)),
                ("forced_down", models.BooleanField(default=False)),
                ("reason", models.CharField(blank=True, max_length=255)),
                ("seen_at", models.DateTimeField()),
                (
                    "cloud",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="computes", to="hosts.cloud"
                    ),
                ),
            ],
            options={
                "ordering": ["name"],
                "constraints": [models.UniqueConstraint(fields=("cloud", "name"), name="one_compute")],
            },
        ),
        migrations.CreateModel(
            name="Server",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("uuid", models.CharField(max_length=36)),
                ("name", models.CharField(max_length=255)),
                ("project", models.CharField(blank=True, max_length=64)),
                ("project_name", models.CharField(blank=True, max_length=255)),
                ("host", models.CharField(blank=True, max_length=255)),
                ("hypervisor_name", models.CharField(blank=True, max_length=255)),
                ("status", models.CharField(blank=True, max_length=40)),
                ("vm_state", models.CharField(blank=True, max_length=40)),
                ("task_state", models.CharField(blank=True, max_length=60)),
                ("flavor", models.CharField(blank=True, max_length=255)),
                ("ephemeral_gb", models.PositiveIntegerField(default=0)),
                ("image", models.CharField(blank=True, max_length=64)),
                ("addresses", models.JSONField(blank=True, default=list)),
                ("locked", models.BooleanField(default=False)),
                ("locked_reason", models.TextField(blank=True)),
                ("words", models.TextField(blank=True)),
                ("updated_at", models.DateTimeField(blank=True, null=True)),
                ("seen_at", models.DateTimeField()),
                (
                    "cloud",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="servers", to="hosts.cloud"
                    ),
                ),
            ],
            options={
                "ordering": ["name", "uuid"],
                "indexes": [
                    models.Index(fields=["uuid"], name="server_uuid"),
                    models.Index(fields=["name", "uuid"], name="server_name"),
                    models.Index(fields=["host"], name="server_host"),
                ],
                "constraints": [models.UniqueConstraint(fields=("cloud", "uuid"), name="one_server")],
            },
        ),
    ]
