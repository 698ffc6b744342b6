"""hermes-auditd: watches the agents' state directories and writes the record."""

import argparse
import fcntl
import os
import select
import signal
import sqlite3
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hermes_auditd import service
from hermes_auditd.chain import Event
from hermes_auditd.config import Config, load
from hermes_auditd.errors import AuditError
from hermes_auditd.mirror import MILLISECOND
from hermes_auditd.record import is_corrupt, open_record, set_aside
from hermes_auditd.watcher import Watcher
from hermes_auditd.writer import Writer

READ_TIME = 50 * MILLISECOND
"""Handling one agent's notifications in one turn: the others wait for it."""
SCAN_TIME = 20 * MILLISECOND
"""Looking at directories in one turn; notifications are read in between."""
TICK = 1000 * MILLISECOND
CLOCK_TOLERANCE = 2000 * MILLISECOND
"""What the clock may be set by, at once, without its being told: NTP corrects less than this all the time."""
METRICS_TICKS = 5
DRAIN_TIME = 20_000 * MILLISECOND
"""For what is still to be handled when the daemon is told to stop."""
STOP_PATIENCE = 5.0
"""Seconds for the last rows to be written."""
AGE_TICKS = 60
HEADS_TICKS = 3600


class Daemon:
    """All that the service does, one thing after the other in one thread."""

    def __init__(self, config: Config, aside: str | None = None) -> None:
        self.config = config
        self.record, damaged = open_record(config.database, _label())
        self.writer = Writer(self.record)
        self.watchers: dict[str, Watcher] = {}
        self._poll = select.poll()
        self._by_fd: dict[int, Watcher] = {}
        self._signals: set[int] = set()
        self._next_tick = 0
        self._ticks = 0
        self._is_ready = False
        self._clock_offset = _clock_offset()
        self._begin(aside or damaged)

    # --- beginning and end

    def _begin(self, aside: str | None) -> None:
        """Say that the record goes on, and since when it did not."""
        if aside is not None:
            service.log(service.WARNING, f"the record was damaged: it is kept as {aside}, and a new one is begun")
            self.writer.tell("corrupt", f"the record was damaged; it is kept as {aside}")
        since, ended = None, "for the first time"
        last = self.record.last_event()
        if last is not None:
            since, ended = last[0], "after it was stopped" if last[1] == "stop" else "after it was killed"
            ahead = since - time.time_ns()
            if ahead > CLOCK_TOLERANCE:  # the clock was set back meanwhile, by at least this
                self.writer.tell("clock", str(-ahead))
                since = None
        self.writer.tell("start", f"started {ended}", first=since)
        for agent in self.config.agents:
            self._add(Watcher(agent, self.config, self.record), since)

    def _add(self, watcher: Watcher, since: int | None) -> None:
        self.watchers[watcher.agent.name] = watcher
        self._by_fd[watcher.tree.inotify.fd] = watcher
        self._poll.register(watcher.tree.inotify.fd, select.POLLIN)
        watcher.check_root("start", since)

    def _remove(self, name: str) -> None:
        watcher = self.watchers.pop(name)
        self._drain(watcher)
        detail = "it is not in the settings any more"
        self.record.add(Event(watcher.mirror.id, time.time_ns(), "unwatch", watcher.mirror.path, detail=detail))
        self._poll.unregister(watcher.tree.inotify.fd)
        del self._by_fd[watcher.tree.inotify.fd]
        watcher.close()

    def reload(self, config: Config) -> None:
        """Watch what the new settings name. Agents that are the same in both do not notice."""
        same = replace(config, agents=(), database="", metrics=None) == replace(
            self.config, agents=(), database="", metrics=None
        )
        if config.database != self.config.database:
            raise AuditError("the database cannot be changed while the daemon runs", "restart hermes-auditd")
        kept = {agent.name for agent in config.agents if same and agent in self.config.agents}
        self.config = config
        for name in self.watchers.keys() - kept:
            self._remove(name)
        for agent in config.agents:
            if agent.name not in kept:
                self._add(Watcher(agent, config, self.record), None)
        self.writer.tell("reload", f"{len(config.agents)} agents, {len(kept)} of them as before")

    @staticmethod
    def _drain(watcher: Watcher) -> None:
        """Make rows of all that has happened by now."""
        deadline = time.monotonic_ns() + DRAIN_TIME
        while (watcher.read() or watcher.is_busy) and time.monotonic_ns() < deadline:
            watcher.scan(time.monotonic_ns() + SCAN_TIME)
        if watcher.is_busy or watcher.is_behind:
            service.log(service.NOTICE, f"of agent {watcher.agent.name}, the rest is found at the next start")
        watcher.settle_all()

    def stop(self) -> None:
        """Write all that is known, and say that from here on nothing is."""
        for watcher in self.watchers.values():
            self._drain(watcher)
        self.writer.tell("stop", "stopped")
        self.writer.commit_at_last(STOP_PATIENCE)
        self._log_heads()
        self.close()

    def close(self) -> None:
        self.record.close()
        for watcher in self.watchers.values():
            watcher.close()

    # --- the loop

    def run(self, config_path: str) -> None:
        """Until SIGTERM or SIGINT; SIGHUP has it read its settings again."""
        wakeup = self._listen()
        while not self._signals & {signal.SIGTERM, signal.SIGINT}:
            if signal.SIGHUP in self._signals:
                self._signals.discard(signal.SIGHUP)
                self._reload_from(config_path)
            ready = {fd for fd, _ in self._poll.poll(self._timeout())}
            if wakeup in ready:
                os.read(wakeup, 64)
            for fd, watcher in self._by_fd.items():
                if fd in ready or watcher.is_behind:
                    watcher.read(time.monotonic_ns() + READ_TIME)
            self.turn()
        service.notify("STOPPING=1")
        self.stop()

    def _listen(self) -> int:
        """Have signals end the wait."""
        receive, send = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(send, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda received, _: self._signals.add(received))
        self._poll.register(receive, select.POLLIN)
        return receive

    def _reload_from(self, path: str) -> None:
        try:
            self.reload(load(path))
        except AuditError as error:
            service.log(service.WARNING, f"the former settings stay: {error}")

    def _timeout(self) -> int:
        """Milliseconds until something is due."""
        if any(watcher.is_busy or watcher.is_behind for watcher in self.watchers.values()):
            return 0
        now = time.monotonic_ns()
        dues = [self._next_tick, self.writer.due(now), *(watcher.next_due() for watcher in self.watchers.values())]
        due = min(due for due in dues if due is not None)
        return max(0, -((now - due) // MILLISECOND))

    def turn(self) -> None:
        """All that is due, after notifications were read."""
        now = time.monotonic_ns()
        for watcher in self.watchers.values():
            due = watcher.next_due()
            if due is not None and due <= now:
                watcher.settle(now)
            if watcher.is_busy:
                watcher.scan(now + SCAN_TIME)
        due = self.writer.due(now)
        if due is not None and due <= now:
            self._commit()
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self._tick()
        if not self._is_ready:
            self._tell_readiness()

    def _commit(self) -> None:
        if not self.writer.commit():
            self.writer.bound()
            return
        self._prune(by_age=False)
        if self.writer.has_gap:
            self.writer.has_gap = False
            for watcher in self.watchers.values():
                watcher.scanner.want("gap", watcher.mirror.now)
        for watcher in self.watchers.values():
            watcher.tree.release()
            watcher.scanner.begin()

    def _prune(self, by_age: bool) -> None:
        self.writer.prune({watcher.mirror.id: watcher.agent.limits for watcher in self.watchers.values()}, by_age)

    def _tick(self) -> None:
        """Once a second."""
        self._ticks += 1
        self._watch_clock()
        for watcher in self.watchers.values():
            watcher.tick()
        self._commit()
        if self._ticks % AGE_TICKS == 1:
            self._prune(by_age=True)
        if self._ticks % METRICS_TICKS == 1 and self.config.metrics:
            with suppress(OSError):
                service.write_metrics(self.config.metrics, self.metrics())
        if self._ticks % HEADS_TICKS == 0:
            self._log_heads()
        service.notify("WATCHDOG=1" if self._is_ready else "EXTEND_TIMEOUT_USEC=30000000")

    def _tell_readiness(self) -> None:
        """Ready is who has watched everything, and found what happened before."""
        if any(watcher.scanner.is_rescanning or watcher.is_busy for watcher in self.watchers.values()):
            return
        self._is_ready = True
        watches = sum(len(watcher.tree.watched) for watcher in self.watchers.values())
        service.log(service.INFO, f"watching {watches} directories of {len(self.watchers)} agents")
        service.notify("READY=1", "STATUS=watching")

    def _watch_clock(self) -> None:
        """Tell when the clock was set: times before and after do not compare."""
        offset = _clock_offset()
        if abs(offset - self._clock_offset) > CLOCK_TOLERANCE:
            self.writer.tell("clock", str(offset - self._clock_offset))
        self._clock_offset = offset

    def _log_heads(self) -> None:
        """Note in the journal where each chain stands: what is in the record up to there cannot be changed unseen."""
        for name, number, value in self.record.heads():
            service.log(service.INFO, f"head {name or '-'}:{number}:{value}")

    def metrics(self) -> dict[str, dict[str, float]]:
        """Each metric's values, by agent; those of the daemon as a whole under an empty name."""
        watchers = self.watchers
        return {
            "events_total": {name: w.mirror.counters.total() for name, w in watchers.items()},
            "overflows_total": {name: w.mirror.counters["overflow"] for name, w in watchers.items()},
            "rescans_total": {name: w.mirror.counters["rescans"] for name, w in watchers.items()},
            "queue_bytes": {name: w.tree.inotify.waiting() for name, w in watchers.items()},
            "watches": {name: len(w.tree.watched) for name, w in watchers.items()},
            "remembered_files": {name: self.record.remembered(w.mirror.id) for name, w in watchers.items()},
            "record_bytes": {name: self.record.size(w.mirror.id) for name, w in watchers.items()},
            "rows_total": {"": self.writer.counters["rows"]},
            "rows_lost_total": {"": self.writer.counters["rows_lost"]},
            "write_errors_total": {"": self.writer.counters["write_errors"]},
            "lag_seconds": {"": self.writer.lag / 1e9},
        }


def _label() -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{os.getpid()}"


def _clock_offset() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def lock(database: str) -> int:
    """Make sure that no other daemon writes this record; the lock lasts as long as the file descriptor."""
    path = database + ".lock"
    try:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AuditError(f"{path} cannot be made: {error.strerror}", "see that the directory can be written") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise AuditError(f"another hermes-auditd writes {database}", "stop that one first") from None
    return fd


def serve(config_path: str) -> None:
    """Run, and begin a new record whenever the present one turns out to be damaged."""
    config = load(config_path)
    lock(config.database)
    aside = None
    while True:
        daemon = Daemon(config, aside)
        try:
            daemon.run(config_path)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            daemon.close()
            aside = set_aside(config.database, _label())
            config = daemon.config
        else:
            return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hermes-auditd", description="Record what happens in state directories.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the settings, as JSON (docs/audit.md)")
    options = parser.parse_args(arguments)
    try:
        serve(options.config)
    except AuditError as error:
        print(f"hermes-auditd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
