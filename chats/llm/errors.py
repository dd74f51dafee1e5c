"""What can go wrong with an upstream, in the codes that clients see."""

import re

UPSTREAM_TIMEOUT = "upstream_timeout"
UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
UPSTREAM_AUTH = "upstream_auth"
UPSTREAM_REJECTED = "upstream_rejected"
UPSTREAM_UNAVAILABLE = "upstream_unavailable"
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"

STATUS_CODES = {
    UPSTREAM_TIMEOUT: 504,
    UPSTREAM_RATE_LIMITED: 502,
    UPSTREAM_AUTH: 502,
    UPSTREAM_REJECTED: 502,
    UPSTREAM_UNAVAILABLE: 502,
    CONTEXT_LENGTH_EXCEEDED: 400,
}
DETAILS = {
    UPSTREAM_TIMEOUT: "The model's provider did not answer in time. Try again.",
    UPSTREAM_RATE_LIMITED: "The model's provider is receiving too many requests, or its quota is used up. "
    "Try again later.",
    UPSTREAM_AUTH: "The model's provider refused this server's credentials. Its administrator must check them.",
    UPSTREAM_REJECTED: "The model's provider refused this request.",
    UPSTREAM_UNAVAILABLE: "The model's provider is not available at the moment. Try again.",
    CONTEXT_LENGTH_EXCEEDED: "The conversation is longer than this model can read.",
}
MAX_REASON_CHARACTERS = 300

# How providers name the same few things: OpenAI, Azure, vLLM, llama.cpp, LiteLLM and OpenRouter were looked at.
_CODES = {
    CONTEXT_LENGTH_EXCEEDED: {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"},
    UPSTREAM_RATE_LIMITED: {
        "rate_limit_exceeded", "rate_limit_error", "rate_limited", "insufficient_quota", "too_many_requests",
        "tokens", "requests",
    },
    UPSTREAM_AUTH: {
        "invalid_api_key", "authentication_error", "invalid_authentication", "permission_error", "permission_denied",
        "unauthorized", "account_deactivated",
    },
    UPSTREAM_REJECTED: {
        "content_filter", "content_policy_violation", "invalid_request_error", "invalid_prompt", "model_not_found",
        "not_found_error", "badrequesterror", "unsupported_parameter", "unsupported_value",
    },
    UPSTREAM_TIMEOUT: {"timeout", "timeout_error", "request_timeout"},
}  # fmt: skip
_CONTEXT_WORDS = re.compile(
    r"maximum context length|context[ _]length|context window|context size|context limit"
    r"|prompt is too long|too many tokens|reduce the length of the messages",
    re.IGNORECASE,
)
_SECRETS = re.compile(r"\b(sk|pk|rk|key|gsk)-[A-Za-z0-9_*.\-]{4,}|(?<=bearer )\S+", re.IGNORECASE)


class UpstreamError(Exception):
    """The model's provider failed or refused.

    `detail` is a sentence for the user, without any secret; `status_code` is what an unstreamed request answers.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.detail = detail or DETAILS[code]
        self.status_code = STATUS_CODES[code]
        super().__init__(f"{code}: {self.detail}")


def rejected(reason: str, *, secret: str = "") -> UpstreamError:
    """Return the `upstream_rejected` that quotes the provider's own `reason`, trimmed and without keys.

    `secret` is this server's own key, masked whatever it looks like.
    """
    if secret:
        reason = reason.replace(secret, "…")
    reason = " ".join(_SECRETS.sub("…", reason).split())
    if len(reason) > MAX_REASON_CHARACTERS:
        reason = reason[: MAX_REASON_CHARACTERS - 1] + "…"
    detail = DETAILS[UPSTREAM_REJECTED]
    return UpstreamError(UPSTREAM_REJECTED, f"{detail[:-1]}: {reason}" if reason else detail)


def classify(status: int | None, *, names: tuple[str, ...] = (), message: str = "") -> str:
    """Return our code for an upstream's HTTP `status`, or, where there is none (mid-stream), for what it calls itself.

    `names` are the values of its `code` and `type`; a number among them is taken for a status.
    """
    called = {name.lower() for name in names}
    if status is None:
        status = next((int(name) for name in called if name.isdecimal() and len(name) == 3), None)
    client_error = status is None or status in {400, 413, 422}
    if client_error and (called & _CODES[CONTEXT_LENGTH_EXCEEDED] or _CONTEXT_WORDS.search(message)):
        return CONTEXT_LENGTH_EXCEEDED
    if status is None:
        return next((code for code, known in _CODES.items() if called & known), UPSTREAM_UNAVAILABLE)
    if status in {401, 403}:
        return UPSTREAM_AUTH
    if status == 429:
        return UPSTREAM_RATE_LIMITED
    if status == 408:
        return UPSTREAM_TIMEOUT
    return UPSTREAM_REJECTED if 400 <= status < 500 else UPSTREAM_UNAVAILABLE
