"""One index finds events both by what they are on and by how that begins; those go that another begins with."""

from django.db import migrations, models

from volmig.online import AddIndexOnline, RemoveIndexOnline, RemoveKeyIndexOnline, RemoveUnlistedIndexOnline


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("record", "0005_publisher"),
    ]

    operations = [
        AddIndexOnline(
            "event",
            models.Index(
                fields=["object", "-seq"], opclasses=["varchar_pattern_ops", "int8_ops"], name="event_of_object"
            ),
        ),
        RemoveIndexOnline("event", "event_by_object"),
        RemoveUnlistedIndexOnline("event_object_like"),
        RemoveKeyIndexOnline("event", "actor"),  # event_by_actor
    ]
