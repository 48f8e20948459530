from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("record", "0003_published_heads"),
    ]

    operations = [
        migrations.AddField(
            model_name="chainhead",
            name="files",
            field=models.JSONField(blank=True, default=dict),
        ),
    ]
