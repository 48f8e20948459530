"""The REST API: the verbs of all apps, for programs that show a token."""
