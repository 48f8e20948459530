import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Probe",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="Process",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=32, unique=True)),
                ("machine", models.CharField(max_length=255)),
                ("place", models.CharField(max_length=32)),
                ("part", models.CharField(max_length=20)),
                ("pid", models.PositiveIntegerField()),
                ("version", models.CharField(max_length=40)),
                ("started_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("beaten_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("skew", models.FloatField(blank=True, null=True)),
                ("disk_free", models.BigIntegerField(blank=True, null=True)),
                ("disk_size", models.BigIntegerField(blank=True, null=True)),
                ("figures", models.JSONField(blank=True, default=dict)),
            ],
            options={
                "ordering": ["machine", "part", "pk"],
            },
        ),
        migrations.CreateModel(
            name="Tally",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=60)),
                ("labels", models.CharField(max_length=200)),
                ("bound", models.CharField(blank=True, max_length=12)),
                ("value", models.FloatField(default=0)),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("name", "labels", "bound"), name="one_tally")],
            },
        ),
    ]
