"""What goes wrong, as the user sees it."""


class AuditError(Exception):
    """What is wrong, with the value, and what to do about it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}\n  hint: {hint}" if hint else what)
