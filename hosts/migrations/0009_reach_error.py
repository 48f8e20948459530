from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("hosts", "0008_clock_off"),
    ]

    operations = [
        migrations.AddField(
            model_name="hypervisor",
            name="reach_error",
            field=models.TextField(blank=True),
        ),
    ]
