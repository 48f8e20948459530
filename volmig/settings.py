"""Settings: safe defaults for one machine, and VOLMIG_ environment variables for everything else."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from volmig import data_dir
from volmig.environment import choice, flag, number, postgresql, text, url, words

BASE_DIR = Path(__file__).resolve().parent.parent
DATA = data_dir.directory()

DEBUG = flag("DEBUG", False)
# Where a key has no file yet, a new one is in memory only: volmig.keys stores it, or refuses to start.
# Workers have no sessions: a key of their own, so that none of them can make one. See docs/containment.md.
SECRET_KEY = data_dir.secret_or_provisional("worker_key" if data_dir.kind() == "worker" else "secret_key")
# Under which the keys of second factors are kept.
FACTOR_KEY = data_dir.secret_or_provisional("factor_key") if data_dir.may_read("factor_key") else ""
# Kept outside the database: who can edit rows cannot forge the chain.
AUDIT_KEY = data_dir.secret_or_provisional("audit_key")
ALLOWED_HOSTS = words("ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]")
LOOPBACK_ONLY = set(ALLOWED_HOSTS) <= {"127.0.0.1", "localhost", "[::1]", "testserver"}
public = url("PUBLIC_URL", "http://127.0.0.1:8000", "http", "https")
PUBLIC_URL = public.geturl()  # for links in notifications
CSRF_TRUSTED_ORIGINS = [f"https://{public.netloc}"] if public.scheme == "https" else []  # live connections, too

INSTALLED_APPS = [
    "volmig.apps.VolmigConfig",
    "volmig.accounts",
    "volmig.record",
    "volmig.health",
    "hosts",
    "jobs",
    "channels",
    "django_htmx",
    "django_otp",
    "django_otp.plugins.otp_static",
    "django_otp.plugins.otp_totp",
    "django_q",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "volmig.logs.middleware",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "volmig.accounts.sessions.no_store",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "volmig.readonly.middleware",
    "volmig.accounts.sessions.middleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "volmig.record.origin.middleware",
    "volmig.health.absent.middleware",
]
ROOT_URLCONF = "volmig.urls"
ASGI_APPLICATION = "volmig.asgi.application"
# volmig/ imports neither hosts nor jobs: what stands above it is named here, in urls.py and in api/root.py.
WEBSOCKET_ROUTES = "jobs.web.live.routes"
WEB_BEGINS = ["jobs.web.sealing.begin"]  # called once in each web process
METRICS = "jobs.web.metrics"
UPGRADE = "jobs.upgrade"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "builtins": ["volmig.templatetags.units"],
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "jobs.web.base.chrome",
            ],
        },
    }
]


def sqlite(path: Path) -> dict[str, Any]:
    # A deferred transaction that reads and then writes fails at once when another process writes: IMMEDIATE waits.
    # FULL, because "disk swapped" must survive a power cut.
    pragmas = (
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=67108864; PRAGMA cache_size=-8000;"
    )
    options = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": pragmas}
    # Tests in several processes (live server, workers) need a file, not a database in one process's memory.
    test = {"NAME": path.with_name("test.sqlite3")}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options, "TEST": test}


def served(address: str) -> dict[str, Any]:
    database = postgresql(address)
    # A server that is gone without a word (a power cut, a firewall) is noticed within half a minute: what waits for it
    # knows of no outage, and the kernel alone waits for a quarter of an hour. VOLMIG_DB can say otherwise.
    noticed = {"connect_timeout": "10", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}
    database["OPTIONS"] = noticed | {"tcp_user_timeout": "25000"} | database["OPTIONS"]
    return database | {"CONN_HEALTH_CHECKS": True, "CONN_MAX_AGE": 60}


DATABASES = {"default": served(text("DB")) if text("DB") else sqlite(DATA / "db.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# What workers may run, and in which queue; a name that is not here never runs, whoever wrote it into the database.
# Guests wait for ticks: nothing that reads, scans or notifies shares their queue or their workers.
TASKS = {
    "jobs.worker.tick.run": "migrations",
    "jobs.worker.watcher.sweep": "migrations",
    "jobs.worker.adopting.adopt_wanted": "background",
    "jobs.worker.adopting.compare": "background",
    "jobs.worker.adopting.finish_wanted": "background",
    "jobs.worker.adopting.own_wanted": "background",
    "jobs.worker.archiving.sweep": "background",
    "hosts.tasks.check_cloud": "background",
    "hosts.tasks.offer_key": "background",
    "hosts.tasks.refresh": "background",
    "hosts.tasks.refresh_cloud": "background",
    "hosts.tasks.refresh_clouds": "background",
    "hosts.tasks.refresh_due": "background",
    "hosts.tasks.refresh_stale": "background",
    "hosts.tasks.scan": "background",
    "hosts.tasks.scan_due": "background",
    "volmig.accounts.models.sweep": "background",
    "volmig.accounts.guessing.record": "background",
    "volmig.notify.send": "background",
    "volmig.notify.send_again": "background",
    "volmig.queue.sweep": "background",
}
# What the release before called them: calls that it left in the queue are run under their new names. Remove these with
# the next release.
FORMER_TASKS = {
    "jobs.tick.run": "jobs.worker.tick.run",
    "jobs.watch.sweep": "jobs.worker.watcher.sweep",
    "jobs.adopting.adopt_wanted": "jobs.worker.adopting.adopt_wanted",
    "jobs.adopting.compare": "jobs.worker.adopting.compare",
    "jobs.adopting.finish_wanted": "jobs.worker.adopting.finish_wanted",
    "jobs.adopting.own_wanted": "jobs.worker.adopting.own_wanted",
    "jobs.archiving.sweep": "jobs.worker.archiving.sweep",
    "volmig.guessing.record": "volmig.accounts.guessing.record",
}
EVERY_MINUTE = [
    "hosts.tasks.refresh_stale",
    "hosts.tasks.refresh_clouds",
    "hosts.tasks.scan_due",
    "jobs.worker.watcher.sweep",
    "jobs.worker.archiving.sweep",
    "volmig.notify.send_again",
    "volmig.accounts.models.sweep",
    "volmig.accounts.guessing.record",
    "volmig.queue.sweep",
]
# How many calls one person, and one token, may cause within ten minutes.
TASKS_CAP = {
    "migrations": (number("ACTIONS_PER_PERSON", 600), number("ACTIONS_PER_TOKEN", 600)),
    "background": (number("REQUESTS_PER_PERSON", 60), number("REQUESTS_PER_TOKEN", 60)),
}
TASK_SECONDS, TASK_RETRY = 120, 400  # the longest a task may last; when one that was lost is delivered again
TASK_POLL = 0.3  # seconds between looks at an empty queue
# One cluster for each queue: this one, and with Q_CLUSTER_NAME=background the other.
# retry must exceed (queue_limit / workers + 2) * timeout, or prefetched tasks run twice; volmig.apps checks it.
Q_CLUSTER = {
    "name": "volmig",
    "cluster_name": "migrations",
    "broker_class": "volmig.broker.TableBroker",
    "scheduler": False,  # its schedules are rows that name any function; volmig's are EVERY_MINUTE
    "cache": "queue",
    "workers": number("WORKERS", 8),
    "queue_limit": 1,  # what a cluster holds until a worker is free: no more than that comes before an urgent task
    "timeout": TASK_SECONDS,
    "retry": TASK_RETRY,
    "recycle": 200,
    "poll": TASK_POLL,
    "guard_cycle": 1,
    "ALT_CLUSTERS": {
        "background": {"workers": number("BACKGROUND_WORKERS", 2)},
    },
}
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "queue": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},  # results of tasks are not kept anywhere
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "overview"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en-gb"
TIME_ZONE = text("TIME_ZONE", "UTC")
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = Path(text("STATIC") or DATA / "static")
COLLECTED = bool(text("STATIC"))  # under names with their hash, compressed; volmig.apps checks that they are there
if not COLLECTED:
    STATIC_ROOT.mkdir(exist_ok=True)  # or WhiteNoise warns of its absence in every process
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = not COLLECTED
STATIC_STORAGE = (
    "whitenoise.storage.CompressedManifestStaticFilesStorage"
    if COLLECTED
    else "django.contrib.staticfiles.storage.StaticFilesStorage"
)
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": STATIC_STORAGE},
}

# On by default as soon as another machine can be served; a laptop on loopback has no certificate.
SECURE = flag("SECURE", not (DEBUG or LOOPBACK_ONLY))
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE
SESSION_COOKIE_NAME = "__Host-sessionid" if SECURE else "sessionid"
CSRF_COOKIE_NAME = "__Host-csrftoken" if SECURE else "csrftoken"
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
IDLE_MINUTES = number("IDLE_MINUTES", 30)
SESSION_HOURS = number("SESSION_HOURS", 8)
SESSION_COOKIE_AGE = SESSION_HOURS * 3600
SECURE_SSL_REDIRECT = SECURE
SECURE_HSTS_SECONDS = 31536000 if SECURE else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE
SECURE_REDIRECT_EXEMPT = [r"^healthz(/live|/ready)?$"]
SECURE_REFERRER_POLICY = "same-origin"
BEHIND_PROXY = flag("BEHIND_PROXY", False)
if BEHIND_PROXY:  # only behind a proxy that removes this header from what clients send
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 256 * 1024
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],  # Bootstrap's CSS has its small icons as data
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}

LAB = flag("LAB", False)  # hosts whose data nobody misses: what breaks things on purpose is allowed there alone
FAILPOINT = text("FAILPOINT")  # boundaries of steps at which a worker dies or waits; see jobs.engine.failpoints
SSH_KEY = text("SSH_KEY")  # path of a private key; empty: volmig's own; "agent": keys of the SSH agent only
LEASE_SECONDS = number("LEASE_SECONDS", 30)
LOCK_MARGIN = number("LOCK_MARGIN", 30)
CONVERSIONS_PER_SOURCE = number("CONVERSIONS_PER_SOURCE", 1)
CONVERSIONS_PER_RELAY = number("CONVERSIONS_PER_RELAY", 2)
APPROVERS = max(0, number("APPROVERS", 1))  # 0: a site of one person, and every page and record says so
APPROVERS_NEED_TOTP = flag("APPROVERS_NEED_TOTP", False)
NEED_TOTP = words("NEED_TOTP")  # roles that are worth nothing to people without a second factor
# Web processes that `manage.py up web` starts on one address; a file as database takes one writer at a time.
WEB_PROCESSES = max(1, number("WEB_PROCESSES", 2 if text("DB") else 1))
WEB_REQUESTS = max(1, number("WEB_REQUESTS", 8))  # that each of them answers at a time; each may hold a connection
WEBSOCKETS = max(1, number("WEBSOCKETS", 1000))  # open live pages of each of them
API_PER_MINUTE = max(1, number("API_PER_MINUTE", 600))  # requests of one token, to each web process
APPROVAL_HOURS = number("APPROVAL_HOURS", 24)
STOP_DEADLINE = number("STOP_DEADLINE", 180)
BACKUP_DAYS = max(0, number("BACKUP_DAYS", 14))  # then a backup is due: people are told, nothing is deleted
STALLED_SECONDS = max(1, number("STALLED_SECONDS", 90))  # without an answer or a byte: then it needs attention
NOTICE_SECONDS = number("NOTICE_SECONDS", 60)  # how often Nova is asked what others did to an instance that waits
CLOUDS_YAML = text("CLOUDS_YAML") or os.environ.get("OS_CLIENT_CONFIG_FILE", "")  # empty: the usual places
METRICS_PORT = number("METRICS_PORT", 0)  # on which one process of this machine serves /metrics; 0: none
METRICS_ADDRESS = text("METRICS_ADDRESS", "127.0.0.1")
METRICS_TOKEN = text("METRICS_TOKEN")  # needed to read /metrics; without it web processes have no /metrics
REFRESH_SECONDS = number("REFRESH_SECONDS", 300)
SCAN_SECONDS = number("SCAN_SECONDS", 86400)  # how often each hypervisor is asked what volmig left there

BACKUP_RECIPIENTS = words("BACKUP_RECIPIENTS")  # age1… or ssh-… public keys that can read backups
AUDIT_HEADS = Path(text("AUDIT_HEADS") or DATA / "audit_heads")  # best on a disk that volmig can only append to
AUDIT_HEADS_SECONDS = number("AUDIT_HEADS_SECONDS", 60)  # how often a new head is published at most

NOTIFY_EMAILS = words("NOTIFY_EMAILS")
WEBHOOK_URL = url("WEBHOOK_URL", "", "http", "https").geturl()
WEBHOOK_SECRETS = words("WEBHOOK_SECRET")  # the first signs; a second one signs, too, while it is being replaced
# smtp://user:password@host:port, smtps:// for TLS from the start
email = url("EMAIL_URL", "", "smtp", "smtps", "smtp+tls")
EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if email.hostname else 'console'}.EmailBackend"
EMAIL_HOST, EMAIL_PORT = email.hostname or "localhost", email.port or 25
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = unquote(email.username or ""), unquote(email.password or "")
EMAIL_USE_SSL, EMAIL_USE_TLS = email.scheme == "smtps", email.scheme == "smtp+tls"
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = text("EMAIL_FROM", "volmig@localhost")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"no_traceback": {"()": "volmig.logs.NoTraceback"}},
    "formatters": {"line": {"()": "volmig.logs.Line"}, "json": {"()": "volmig.logs.Json"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": choice("LOG_FORMAT", "line", "json")}},
    "root": {"handlers": ["console"], "level": text("LOG_LEVEL", "INFO")},
    # paramiko prints a traceback for each machine that is down; hosts.remote.ssh says it in a sentence.
    "loggers": {
        "paramiko": {"level": "CRITICAL"},
        "django-q": {"level": "WARNING"},
        "django.request": {"filters": ["no_traceback"]},
        "uvicorn": {"level": "WARNING", "handlers": [], "propagate": True},  # not in uvicorn's own format
    },
}
