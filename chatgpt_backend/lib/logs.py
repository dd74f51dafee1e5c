"""Logging: structlog in front, one format for our lines and the libraries', context (request id) on each."""

import logging
import logging.handlers
import re
from pathlib import Path
from typing import Any

import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer

SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

# What must never stand in a log, wherever a line came from: tokens in addresses and headers, tickets, API keys.
SECRETS = re.compile(
    r"(?P<before>/api/v1/ws/(?!ticket(?:[/?\s]|$))|/api/v1/shared/|(?<![\w/])/s/|/reset/[^/\s]+/"
    r"|[?&](?:ticket|token)=|\bBearer |\bbearer,\s*)[^\s/?&\"'<>),]+"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]+"
    r"|\bsk-[\w-]{8,}"
)


def redact(text: str) -> str:
    """Return `text` without the tokens, tickets and keys in it."""
    return SECRETS.sub(lambda found: f"{found['before'] or ''}[redacted]", text)


class RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """The last step of every line, tracebacks and other libraries' lines included: cut secrets out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without secrets."""
        return redact(super().format(record))


class DirectoryMakingFileHandler(logging.handlers.WatchedFileHandler):
    """A log file that makes its directory when the first line is written, and survives rotation from outside."""

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


def logging_config(*, level: str, form: str, path: str | None) -> dict[str, Any]:
    """Return a `dictConfig`: lines to stderr in `form` ("console" or "json"), and as JSON to `path` if there is one."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *SHARED,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    # Traces without the values of variables: those hold what users wrote, and keys.
    tracebacks: Any = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    json_lines = [tracebacks, structlog.processors.JSONRenderer(ensure_ascii=False)]
    console = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]

    def formatter(renderers: list[Any]) -> dict[str, Any]:
        return {
            "()": RedactingFormatter,
            "foreign_pre_chain": SHARED,
            "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        }

    handlers: dict[str, Any] = {
        "stderr": {"class": "logging.StreamHandler", "formatter": "json" if form == "json" else "console"}
    }
    if path:
        handlers["file"] = {
            "class": "chatgpt_backend.lib.logs.DirectoryMakingFileHandler",
            "filename": path,
            "delay": True,
            "encoding": "utf-8",
            "formatter": "json",
        }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": formatter(json_lines), "console": formatter(console)},
        "handlers": handlers,
        "root": {"handlers": list(handlers), "level": level},
        "loggers": {
            # They say at INFO what our own access log says, or put whole addresses (with tokens) into lines.
            name: {"level": "WARNING"}
            for name in ("daphne", "httpx2", "httpcore2", "openai", "asyncio", "django.server")
        }
        # At WARNING it repeats each 4xx.
        | {"django.request": {"level": "ERROR"}}
        # Anybody may send any Host: a 400 in the access log says it, without a trace.
        | {"django.security.DisallowedHost": {"level": "CRITICAL"}},
    }
