#!/usr/bin/env bash
# pytest 9.1.1 with hypothesis 6.170.15 installed, Python 3.11 or later.
#
# The comment at the head of hypothesis' pytest plugin says that it does not import hypothesis unless the user does. It does so
# at the end of every run that has a terminal reporter: its hook for the terminal's summary imports
# hypothesis.internal.observability, and with it all of hypothesis. In a run of one test that uses nothing of it, hypothesis is
# not imported when the session has finished, and is when pytest is unconfigured. That takes about as long as all the rest of
# such a run; with `-p no:hypothesispytest` it does not happen.
#
# Prints both states, with the plugin and without; fails if that has changed.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check pytest==9.1.1 hypothesis==6.170.15
cd "$place"
cat > test_nothing.py <<'END'
def test_nothing():
    pass
END
cat > conftest.py <<'END'
import sys


def say(when):
    print(f"\n{when}: {'imported' if 'hypothesis' in sys.modules else 'not imported'}", file=sys.__stdout__)


def pytest_sessionfinish():
    say("session finished")


def pytest_unconfigure():
    say("unconfigured")
END
run() { venv/bin/python -m pytest -q -s -p no:cacheprovider "$@" | grep -E '^(session finished|unconfigured): '; }
with=$(run)
without=$(run -p no:hypothesispytest)
printf 'with the plugin\n%s\nwithout it\n%s\n' "$with" "$without"
[ "$with" = $'session finished: not imported\nunconfigured: imported' ]
[ "$without" = $'session finished: not imported\nunconfigured: not imported' ]
