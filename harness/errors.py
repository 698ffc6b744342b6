"""What goes wrong, as the user sees it: what, and what to do."""


class HarnessError(Exception):
    """The root of all errors that the harness raises on purpose.

    ``what`` says what is wrong, with the value; ``hint`` what to do about it.
    A traceback of anything else is a bug of the harness.
    """

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  hint: {self.hint}" if self.hint else self.what


class Untriable(HarnessError):
    """It cannot be tried on this machine, which lacks a program, say: nothing is known of what was to be tested."""
