"""What goes wrong: what is wrong, with the value, and what to do about it."""

from collections.abc import Mapping


class SpeechError(Exception):
    """Of the server's own settings and voices, for whoever runs it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}\n  hint: {hint}" if hint else what)


class ApiError(Exception):
    """Of a request, for whoever sent it: a status, and a body of OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
