from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("record", "0004_files_of_heads"),
    ]

    operations = [
        migrations.CreateModel(
            name="Publisher",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("owner", models.CharField(max_length=32)),
                ("place", models.CharField(max_length=32)),
                ("host", models.CharField(max_length=100)),
                ("path", models.CharField(max_length=500)),
                ("since", models.DateTimeField()),
                ("until", models.DateTimeField()),
                ("seq", models.BigIntegerField(default=0)),
                ("at", models.DateTimeField(blank=True, null=True)),
                ("former", models.JSONField(blank=True, default=dict)),
            ],
        ),
    ]
