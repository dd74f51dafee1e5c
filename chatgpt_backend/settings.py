"""All settings, those of Django and the product's own, read from the environment through `env.py`."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chatgpt_backend import __version__
from chatgpt_backend.env import env, read_env_file
from chatgpt_backend.lib.logs import logging_config

BASE_DIR = Path(__file__).resolve().parent.parent
read_env_file()

# --- Ground -----------------------------------------------------------------------------------------------------

# Development's fallback; `serve` refuses to start on it (check ops.E001).
INSECURE_SECRET_KEY = "insecure-development-key-run-manage.py-init"  # public by design
SECRET_KEY = env.str("SECRET_KEY", default="") or INSECURE_SECRET_KEY
DEBUG = env.bool("DEBUG", default=False)
PUBLIC_URL = env.str("PUBLIC_URL", default="http://localhost:8000").rstrip("/")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CORS_ALLOWED_ORIGINS = env.list("CORS_ALLOWED_ORIGINS", default=[])
CORS_URLS_REGEX = r"^/(api|v1)/"
CORS_EXPOSE_HEADERS = ["X-Request-ID", "Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]
CORS_ALLOW_HEADERS = [
    "accept", "authorization", "content-type", "idempotency-key", "if-match", "last-event-id",
    "x-csrftoken", "x-request-id", "x-requested-with", "x-share-password",
]  # fmt: skip
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL, *CORS_ALLOWED_ORIGINS]

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "corsheaders",
    "channels",
    "rest_framework",
    "adrf",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "chatgpt_backend.ops",
    "quotas",
    "accounts",
    "chats",
    "realtime",
]

# Few and async-capable: a sync one costs every request a thread hop, and every open stream a thread.
# The admin's own run under /admin alone.
MIDDLEWARE = [
    "chatgpt_backend.ops.middleware.RequestMiddleware",
    "chatgpt_backend.ops.middleware.SecurityHeadersMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "chatgpt_backend.ops.middleware.SyncViewsMiddleware",
    "chatgpt_backend.ops.middleware.AdminSessionMiddleware",
    "chatgpt_backend.ops.middleware.AdminCsrfMiddleware",
    "chatgpt_backend.ops.middleware.AdminAuthenticationMiddleware",
    "chatgpt_backend.ops.middleware.AdminMessagesMiddleware",
]

ROOT_URLCONF = "chatgpt_backend.urls"
ASGI_APPLICATION = "chatgpt_backend.asgi.application"
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# --- Database ---------------------------------------------------------------------------------------------------


def database(url: str) -> dict[str, Any]:
    """Return Django's DATABASES entry for `url`, with what each engine needs to serve many threads."""
    scheme, separator, rest = url.partition("://")
    config: dict[str, Any] = env.db_url_config(f"{scheme.partition('+')[0]}{separator}{rest}")
    if config["ENGINE"].endswith("sqlite3"):
        if config["NAME"] and config["NAME"] != ":memory:":
            config["NAME"] = str(BASE_DIR / config["NAME"])
        config["OPTIONS"] = {
            # Writers queue at BEGIN instead of failing when a read turns into a write.
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA temp_store=MEMORY;",
        }
    return config


DATABASES = {"default": database(env.str("DATABASE_URL", default="") or "sqlite:///./chatgpt_backend.db")}
# The threads that async code's database calls run on (lib/db.py), and so its connections a process.
DATABASE_THREADS = env.int("DATABASE_THREADS", default=20)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

# --- Accounts ---------------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["accounts.backends.NameOrEmailBackend"]
PASSWORD_HASHERS = ["accounts.hashers.Argon2Hasher"]
PASSWORD_POLICY = env.str("PASSWORD_POLICY", default="standard")
AUTH_PASSWORD_VALIDATORS: list[dict[str, Any]] = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12 if PASSWORD_POLICY == "strict" else 8},
    },
    {"NAME": "accounts.passwords.MixedKindsValidator"},
]
if PASSWORD_POLICY == "strict":
    AUTH_PASSWORD_VALIDATORS.append({"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"})
REGISTRATION = env.str("REGISTRATION", default="open")
REGISTRATION_DOMAINS = env.list("REGISTRATION_DOMAINS", default=[])

ACCESS_TOKEN_LIFETIME = timedelta(seconds=env.int("ACCESS_TOKEN_SECONDS", default=3600))
REFRESH_TOKEN_LIFETIME = timedelta(seconds=env.int("REFRESH_TOKEN_SECONDS", default=30 * 86400))
# A refresh token used again within this time (two tabs) gives the same new pair; later it revokes the session.
REFRESH_REUSE_SECONDS = 10
SIMPLE_JWT = {
    "ALGORITHM": "HS256",
    # Not the bare SECRET_KEY: tokens are signed by a key of their own, derived from it.
    "SIGNING_KEY": hashlib.sha256(b"access-tokens:" + SECRET_KEY.encode()).hexdigest(),
    "ACCESS_TOKEN_LIFETIME": ACCESS_TOKEN_LIFETIME,
    "REFRESH_TOKEN_LIFETIME": REFRESH_TOKEN_LIFETIME,
    "USER_ID_CLAIM": "sub",
}
# Addresses and CIDRs of proxies of ours: their X-Forwarded-For is believed, nobody else's.
TRUSTED_PROXIES = env.list("TRUSTED_PROXIES", default=[])

# --- Encryption of what users write --------------------------------------------------------------------------------

# Comma-separated url-safe base64 of 32 bytes each; the first seals, all open. None: derived from SECRET_KEY.
ENCRYPTION_KEYS = env.list("ENCRYPTION_KEYS", default=[])

# --- REST ----------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.SessionTokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["chatgpt_backend.lib.parsers.BoundedJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "chatgpt_backend.lib.negotiation.JSONAlways",
    "DEFAULT_PAGINATION_CLASS": None,
    "DEFAULT_SCHEMA_CLASS": "drf_standardized_errors.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "drf_standardized_errors.handler.exception_handler",
    "URL_FORMAT_OVERRIDE": None,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
DRF_STANDARDIZED_ERRORS = {"EXCEPTION_HANDLER_CLASS": "chatgpt_backend.lib.errors.ExceptionHandler"}
SPECTACULAR_SETTINGS = {
    "TITLE": "ChatGPT Backend",
    "DESCRIPTION": "Users, conversations, streamed replies, quotas. Errors have one shape; lists are cursor pages.",
    "VERSION": __version__,
    "OAS_VERSION": "3.1.1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    # The validator is a page of somebody else's.
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": True, "validatorUrl": None},
    "COMPONENT_SPLIT_REQUEST": True,
    # They go to stderr each time somebody asks for the schema; `make check` shows them.
    "DISABLE_ERRORS_AND_WARNINGS": env.bool("QUIET_SCHEMA", default=True),
    "ENUM_NAME_OVERRIDES": {
        "UserRoleEnum": "accounts.models.User.Role",
        "MessageRoleEnum": "chats.models.Message.Role",
        **{
            f"{name}Enum": f"drf_standardized_errors.openapi_serializers.{name}Enum.choices"
            for name in (
                "ValidationError",
                "ClientError",
                "ServerError",
                "ErrorCode401",
                "ErrorCode403",
                "ErrorCode404",
                "ErrorCode405",
                "ErrorCode406",
                "ErrorCode415",
                "ErrorCode429",
                "ErrorCode500",
            )
        },
    },
    "POSTPROCESSING_HOOKS": [
        "drf_standardized_errors.openapi_hooks.postprocess_schema_enums",
    ],
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 * 1024 * 1024
# Of any body, uploads included: beyond it the server hangs up. JSON has the limit above.
MAX_REQUEST_BYTES = env.int("MAX_REQUEST_BYTES", default=100 * 1024 * 1024)

# --- The model's side ----------------------------------------------------------------------------------------------

OPENAI_API_KEY = env.str("OPENAI_API_KEY", default="")
OPENAI_API_BASE = env.str("OPENAI_API_BASE", default="") or "https://api.openai.com/v1"
OPENAI_TIMEOUT = env.float("OPENAI_TIMEOUT", default=60.0)
OPENAI_MAX_CONNECTIONS = env.int("OPENAI_MAX_CONNECTIONS", default=2000)
OPENAI_MAX_RETRIES = env.int("OPENAI_MAX_RETRIES", default=2)
DEFAULT_MODEL = env.str("DEFAULT_MODEL", default="gpt-3.5-turbo")

# --- Generation ----------------------------------------------------------------------------------------------------

DEFAULT_MAX_TOKENS = 4096
MIN_COMPLETION_TOKENS = 16
LEASE_SECONDS = 10.0
KEEPER_SECONDS = 1.0
SSE_KEEPALIVE_SECONDS = 15.0
MAX_DELTA_BYTES = 64 * 1024
MAX_CONTENT_CHARACTERS = 1_000_000

# --- Quotas --------------------------------------------------------------------------------------------------------

DEFAULT_PLAN = "free"
VIP_PLAN = "vip"

# --- Realtime ------------------------------------------------------------------------------------------------------

WEBSOCKET_HEARTBEAT_SECONDS = 30
WEBSOCKET_MAX_FRAME_BYTES = 1024 * 1024
WEBSOCKET_MAX_PER_USER = env.int("WEBSOCKET_MAX_PER_USER", default=10)
FEED_DAYS = 7
# How long a stopping process lets running replies finish before it interrupts them.
SHUTDOWN_GRACE_SECONDS = env.float("SHUTDOWN_GRACE_SECONDS", default=10.0)

# --- Pages, mail, languages, files -----------------------------------------------------------------------------------

USE_TZ = True
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
USE_I18N = True
LOCALE_PATHS = [BASE_DIR / "locale"]
EMAIL_CONFIG = env.email_url("EMAIL_URL", default="consolemail://")
vars().update(EMAIL_CONFIG)

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
SERVESTATIC_USE_FINDERS = not STATIC_ROOT.is_dir()
MEDIA_ROOT = BASE_DIR / "uploads"

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = urlsplit(PUBLIC_URL).scheme == "https"

# Our own middleware sends these headers, and checks CSRF where cookies count: under /admin.
SILENCED_SYSTEM_CHECKS = ["security.W001", "security.W002", "security.W003"]

UNFOLD = {"SITE_TITLE": "ChatGPT Backend", "SITE_HEADER": "ChatGPT Backend"}

# --- Logs ------------------------------------------------------------------------------------------------------------

LOG_LEVEL = env.str("LOG_LEVEL", default="INFO").upper()
LOG_FORMAT = env.str("LOG_FORMAT", default="console")
LOG_FILE = env.str("LOG_FILE", default="logs/app.log")
LOGGING = logging_config(level=LOG_LEVEL, form=LOG_FORMAT, path=str(BASE_DIR / LOG_FILE) if LOG_FILE else None)
