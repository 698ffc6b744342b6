"""Finds the time limits in the sources, for docs/time-limits.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.support import REPOSITORY

NAME = re.compile(r"(TIMEOUT|PATIENCE|DEADLINE|GRACE|INTERVAL|SECONDS)$|^(LATE|SLOW|WORSE|AGAIN|REFERENCE|LEAVE_TIME)$")
PARAMETERS = {"timeout", "within", "deadline", "patience"}
FOLDERS = ("harness", "tests", "modules")


def is_number(node: ast.expr | None) -> bool:
    """Whether it is a number, or is made of numbers: ``5``, ``100 * MILLISECOND``, ``TIMEOUT + 30``."""
    if isinstance(node, ast.BinOp):
        return is_number(node.left) or is_number(node.right)
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def limits_in(source: str) -> Iterator[tuple[str, str]]:
    """Name and value of each limit of a module: constants, arguments and defaults that are numbers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and is_number(node.value):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and NAME.search(target.id):
                    yield target.id, ast.unparse(node.value)
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in PARAMETERS and is_number(keyword.value):
                    yield f"{keyword.arg}=", ast.unparse(keyword.value)
        elif isinstance(node, ast.FunctionDef):
            arguments = node.args
            positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
            pairs = [*zip(positional, arguments.defaults, strict=True)]
            for argument, default in [*pairs, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
                if argument.arg in PARAMETERS and is_number(default):
                    assert default is not None
                    yield f"{argument.arg}=", ast.unparse(default)


def find_limits() -> dict[str, set[tuple[str, str]]]:
    """The limits of each file that has some, by its path in the repository; those of tests/unit are of stubs."""
    found = {}
    for path in sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")):
        if not path.is_relative_to(REPOSITORY / "tests" / "unit") and (limits := set(limits_in(path.read_text()))):
            found[str(path.relative_to(REPOSITORY))] = limits
    return found


def read_table(page: Path) -> dict[str, set[tuple[str, str]]]:
    """The limits that a page lists: rows of file, name, value and more."""
    found: dict[str, set[tuple[str, str]]] = {}
    for line in page.read_text().splitlines():
        if row := re.match(r"\| `([^`]+\.py)` \| `([^`]+)` \| `([^`]+)` \| \S", line):
            found.setdefault(row[1], set()).add((row[2], row[3]))
    return found
