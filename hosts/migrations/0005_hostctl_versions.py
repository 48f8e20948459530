import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("hosts", "0004_scans"),
    ]

    operations = [
        migrations.CreateModel(
            name="HostctlVersion",
            fields=[
                ("hash", models.CharField(max_length=16, primary_key=True, serialize=False)),
                ("protocol", models.PositiveSmallIntegerField()),
                ("archive", models.BinaryField()),
                ("added_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
        migrations.AddField(
            model_name="hypervisor",
            name="hostctl_versions",
            field=models.JSONField(blank=True, default=list),
        ),
    ]
