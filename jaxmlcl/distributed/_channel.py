"""The channel between the processes of a run: roll call, signs of life, agreements, and a relay.

Process 0 listens at the coordinator's address; every other process keeps one connection to it, on
which JSON objects go both ways, one a line. On top of that stand

- the roll call: nobody goes on before all are there, and whoever is missing is named;
- signs of life: a process that dies, or says nothing for too long, ends the others, with its name;
- `share`: what process 0 says, at every process;
- `reached`: all stop at the same place when one of them is asked to stop;
- a relay for JAX's coordination service. Its client aborts the program, without a word that helps,
  as soon as its connection closes. Behind the relay it does not see that, so that the channel
  speaks first. And one open port is enough.

All of it runs in one thread beside the program; nothing here knows JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

Message = dict[str, Any]

# A line holds what process 0 shares; a folder's name or the name of a checkpoint.
_LINE_LIMIT = 2**26
_RETRY = 0.2  # seconds between two attempts to reach process 0
_GRACE = 2.0  # seconds in which a process may end by its own error before another's ends it


class MissingError(Exception):
    """Not every process came in time, or one was refused."""


class Lost(NamedTuple):
    """Another process is gone."""

    who: str
    how: str
    code: int | None
    """The exit code it told; None if it told nothing."""


class Channel:
    """One process's end of the channel; `open` returns when every process is there.

    Args:
      host: the coordinator's name or address.
      port: its port; at process 0 the channel listens there.
      count: processes of the run.
      index: which of them this is.
      name: what this machine is called in messages.
      facts: what must be the same in all processes, by name, such as the version of the program.
      start_timeout: seconds in which all must have come.
      silence: seconds without a sign of life after which a process counts as gone.
      on_lost: called once, in the channel's thread, when another process is gone.
    """

    def __init__(
        self,
        host: str,
        port: int,
        count: int,
        index: int,
        *,
        name: str,
        facts: dict[str, str],
        start_timeout: float,
        silence: float,
        on_lost: Callable[[Lost], None],
    ) -> None:
        self.host, self.port, self.count, self.index = host, port, count, index
        self.relay_port: int | None = None
        self.service_port: int | None = None
        self._facts = facts
        self._start_timeout, self._silence = start_timeout, silence
        self._on_lost = on_lost
        self._names = {index: name}
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._heard: dict[int, float] = {}
        self._left: set[int] = set()
        self._closing = False
        self._told_lost = False
        self._server: asyncio.Server | None = None
        self._refused: str | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        # What the program's thread waits for, under one condition.
        self._changed = threading.Condition()
        self._shared: dict[int, Any] = {}
        self._shares = 0
        self._collected: dict[int, dict[int, Any]] = {}
        self._collections = 0
        self._reached = 0
        self._held_at: int | None = None
        self._held: dict[int, int] = {}
        self._stop_at: int | None = None
        self._asked_by: str | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="channel", daemon=True)

    # ------------------------------------------------------------- the program's side

    def open(self) -> None:
        """Join the others.

        Raises:
          MissingError: one line that names who did not come, or why this process was refused.
        """
        self._thread.start()
        opening = self._listen() if self.index == 0 else self._join()
        asyncio.run_coroutine_threadsafe(opening, self._loop).result()
        self._call(self._keep_watch)

    def who(self, index: int) -> str:
        """A process in a message."""
        name = self._names.get(index)
        return f"process {index} ({name})" if name else f"process {index}"

    def share(self, value: Any = None) -> Any:
        """What process 0 gives, at every process; each must call it in the same order.

        Args:
          value: at process 0 something that JSON can hold; ignored elsewhere.
        """
        number = self._shares = self._shares + 1
        if self.index == 0:
            self._call(self._broadcast, {"share": number, "value": value})
            return json.loads(json.dumps(value))
        with self._changed:
            self._changed.wait_for(lambda: number in self._shared)
            return self._shared.pop(number)

    def collect(self, value: Any) -> list[Any]:
        """What every process gives, in order, at process 0; nothing elsewhere.

        Args:
          value: something that JSON can hold.
        """
        number = self._collections = self._collections + 1
        self._call(self._send_home, {"collect": number, "value": value})
        if self.index != 0:
            return []
        with self._changed:
            self._changed.wait_for(lambda: len(self._collected.get(number, {})) == self.count)
            found = self._collected.pop(number)
        return [found[index] for index in range(self.count)]

    def meet(self) -> None:
        """Wait until every process has come here; as long as all show signs of life."""
        self.collect(None)
        self.share(None)

    def ask_to_stop(self, reason: str) -> None:
        """Ask all to stop at a common place; may be called by a signal's handler."""
        self._call(self._send_home, {"stop": f"{reason} to {self.who(self.index)}"})

    def reached(self) -> str | None:
        """One more place where the run could stop; who asked, if all stop at this one.

        Every process counts the places it passes. When one is asked to stop, each tells how far it
        has come and passes no further; the furthest decides: the place after that is the one.
        """
        with self._changed:
            while self._held_at is not None and self._stop_at is None:
                if self._reached < self._held_at:
                    break
                self._changed.wait()
            self._reached += 1
            stop = self._stop_at is not None and self._reached >= self._stop_at
            return self._asked_by if stop else None

    def end(self, code: int, message: str) -> None:
        """Tell the others that this process ends with an error, which ends them too."""
        with contextlib.suppress(TimeoutError):
            self._wait_for(self._say({"end": code, "message": message}), 2.0)

    def close(self) -> None:
        """Leave in good order; process 0 waits until the others have left."""
        with contextlib.suppress(TimeoutError):
            self._wait_for(self._leave(), self._silence)
        asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    def _wait_for(self, work: Coroutine[Any, Any, None], seconds: float) -> None:
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop).result()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ roll call

    async def _listen(self) -> None:
        """Process 0: wait until every process has come."""
        self._all_there = asyncio.Event()
        if self.count == 1:
            return  # nobody will come, and another run may have the port
        local = self.host in ("localhost", "127.0.0.1", "::1")
        try:
            self._server = await asyncio.start_server(
                lambda *ends: self._spawn(self._welcome(*ends)),
                self.host if local else None,
                self.port,
                limit=_LINE_LIMIT,
            )
        except OSError as error:
            raise MissingError(
                f"cannot listen at {self.host}:{self.port} ({error.strerror or error}); is another "
                "run using it? give another port to all processes, by --distributed.coordinator, "
                "or by JAX_COORDINATOR_PORT where a launcher starts them"
            ) from None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_there.wait(), self._start_timeout)
        if self._refused is not None:
            raise MissingError(self._refused)
        missing = [str(i) for i in range(self.count) if i not in self._names]
        if missing:
            came = ", ".join(self.who(i) for i in sorted(self._names))
            text = (
                f"process{'es' if len(missing) > 1 else ''} {', '.join(missing)} of {self.count} "
                f"did not come within {self._start_timeout:g} s; there are: {came}"
            )
            await self._tell_all({"refused": text})
            raise MissingError(text)
        # Those who came early have waited, not been silent.
        self._heard = dict.fromkeys(self._heard, self._loop.time())
        self._broadcast({"go": {str(i): name for i, name in self._names.items()}})

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection from outside: another process, or the relay of one."""
        hello = await _read(reader)
        if hello is not None and "relay" in hello:
            await self._relay_to_service(reader, writer)
        elif hello is not None and hello.keys() >= {"process", "count", "name", "facts"}:
            await self._enrol(hello, reader, writer)
        else:
            writer.close()  # a stranger

    async def _enrol(
        self, hello: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        index, name = int(hello["process"]), str(hello["name"])
        refused = None
        if hello["count"] != self.count:
            refused = (
                f"process {index} ({name}) was started as one of {hello['count']} processes, "
                f"{self.who(0)} as one of {self.count}; give all the same number"
            )
        elif index in self._names:
            refused = (
                f"process {index} was started twice, by {self._names[index]} and by {name}; give "
                "each its own process id"
            )
        else:
            for fact, value in self._facts.items():
                if hello["facts"].get(fact) != value:
                    refused = (
                        f"process {index} ({name}) has {fact} {hello['facts'].get(fact)}, "
                        f"{self.who(0)} has {value}; start all with the same"
                    )
        if refused is not None:
            _write(writer, {"refused": refused})
            if not self._all_there.is_set():
                await self._refuse(refused)
            return
        self._names[index] = name
        self._writers[index] = writer
        self._heard[index] = self._loop.time()
        if len(self._names) == self.count:
            self._all_there.set()
        await self._read_from(index, reader)

    async def _refuse(self, reason: str) -> None:
        """Give the start up, in all processes that have come."""
        self._refused = reason
        await self._tell_all({"refused": reason})
        self._all_there.set()

    async def _join(self) -> None:
        """Another process: reach process 0, and wait for its go."""
        deadline = self._loop.time() + self._start_timeout
        while True:
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(self.host, self.port, limit=_LINE_LIMIT), 5.0
                )
                break
            except (OSError, TimeoutError) as error:
                if self._loop.time() > deadline:
                    reason = getattr(error, "strerror", None) or "no answer"
                    raise MissingError(
                        f"process 0 did not come within {self._start_timeout:g} s: nothing answers "
                        f"at {self.host}:{self.port} ({reason}); is it running, and is that its "
                        "address?"
                    ) from None
                await asyncio.sleep(_RETRY)
        self._writers[0] = writer
        hello = {
            "process": self.index,
            "count": self.count,
            "name": self._names[self.index],
            "facts": self._facts,
        }
        _write(writer, hello)
        # Process 0 knows who is missing, and may have begun to wait only now; it is given a moment
        # more to say so.
        try:
            answer = await asyncio.wait_for(_read(reader), self._start_timeout + 10.0)
        except TimeoutError:
            answer = None
        if answer is None or "go" not in answer:
            said = (answer or {}).get("refused")
            raise MissingError(said or f"process 0 at {self.host}:{self.port} went away at start")
        self._names = {int(i): name for i, name in answer["go"].items()}
        self._heard[0] = self._loop.time()
        self._server = await asyncio.start_server(
            lambda *ends: self._spawn(self._relay_home(*ends)), "127.0.0.1", 0
        )
        self.relay_port = self._server.sockets[0].getsockname()[1]
        self._spawn(self._read_from(0, reader))

    # ---------------------------------------------------------------- signs of life

    def _keep_watch(self) -> None:
        self._spawn(self._watch())

    async def _watch(self) -> None:
        pause = min(self._silence / 4, 5.0)
        before = self._loop.time()
        while not self._closing:
            self._broadcast({"beat": True})
            await asyncio.sleep(pause)
            now = self._loop.time()
            if now - before > self._silence / 2:
                # It was this process that slept; the others get their time anew.
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            for index, heard in list(self._heard.items()):
                if index not in self._left and now - heard > self._silence:
                    self._lose(index, f"gave no sign of life for {self._silence:g} s")

    async def _read_from(self, index: int, reader: asyncio.StreamReader) -> None:
        while True:
            message = await _read(reader)
            if message is None:
                break
            self._heard[index] = self._loop.time()
            self._take(index, message)
        how = "is gone: its connection closed, it was killed or crashed"
        if self.index == 0 and not self._all_there.is_set():
            await self._refuse(f"{self.who(index)} {how}, while others were awaited")
        elif not self._closing and index not in self._left:
            self._lose(index, how)

    def _lose(self, index: int, how: str, code: int | None = None) -> None:
        if self._told_lost or self._closing:
            return
        self._told_lost = True
        lost = {"lost": index, "how": how, "code": code}
        self._broadcast(lost)
        self._spawn(self._report(lost))

    async def _report(self, lost: Message) -> None:
        if lost["code"] is not None:
            # The same mistake may be on its way out here, in its own words.
            await asyncio.sleep(_GRACE)
        else:
            await asyncio.sleep(0.1)  # until the others have been told
        if not self._closing:
            self._on_lost(Lost(self.who(lost["lost"]), lost["how"], lost["code"]))

    # ------------------------------------------------------------------ messages

    def _take(self, index: int, message: Message) -> None:
        if "share" in message:
            with self._changed:
                self._shared[message["share"]] = message["value"]
                self._changed.notify_all()
        elif "collect" in message:
            with self._changed:
                self._collected.setdefault(message["collect"], {})[index] = message["value"]
                self._changed.notify_all()
        elif "stop" in message:
            self._hold_all(message["stop"])
        elif "hold" in message:
            self._hold()
        elif "held" in message:
            self._note_held(index, message["held"])
        elif "stop_at" in message:
            self._decide(message)
        elif "end" in message:
            self._lose(index, f"ended: {message['message']}", message["end"])
        elif "lost" in message and not self._told_lost:
            self._told_lost = True
            self._spawn(self._report(message))
        elif "bye" in message:
            self._left.add(index)
            self._settle()

    def _broadcast(self, message: Message) -> None:
        """To all others at process 0; to process 0 elsewhere."""
        for writer in self._writers.values():
            _write(writer, message)

    def _send_home(self, message: Message) -> None:
        """To process 0, which may be this one."""
        if self.index == 0:
            self._take(0, message)
        else:
            _write(self._writers[0], message)

    async def _say(self, message: Message) -> None:
        if self.index == 0 and "end" in message:
            message = {
                "lost": 0,
                "how": f"ended: {message['message']}",
                "code": message["end"],
            }
        self._closing = True
        await self._tell_all(message)

    async def _tell_all(self, message: Message) -> None:
        self._broadcast(message)
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                await writer.drain()

    async def _leave(self) -> None:
        await self._tell_all({"bye": True})
        if self.index == 0:
            while len(self._left) < self.count - 1 and not self._told_lost:
                await asyncio.sleep(0.01)
        self._closing = True

    async def _end_tasks(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers.values():
            writer.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    # ------------------------------------------------------------------ stopping

    def _hold_all(self, reason: str) -> None:
        """At process 0: ask everyone how far they are, once."""
        if self._asked_by is not None:
            return
        self._asked_by = reason
        self._broadcast({"hold": True})
        self._hold()

    def _hold(self) -> None:
        with self._changed:
            self._held_at = self._reached
            reached = self._reached
        if self.index == 0:
            self._note_held(0, reached)
        else:
            self._send_home({"held": reached})

    def _note_held(self, index: int, reached: int) -> None:
        self._held[index] = reached
        self._settle()

    def _settle(self) -> None:
        """At process 0: decide, once every process that is still there has told how far it is."""
        if self._asked_by is None or self.index != 0 or self._stop_at is not None:
            return
        if len(self._held.keys() | self._left) == self.count:
            decided = {"stop_at": max(self._held.values()) + 1, "by": self._asked_by}
            self._broadcast(decided)
            self._decide(decided)

    def _decide(self, message: Message) -> None:
        with self._changed:
            self._stop_at, self._asked_by = message["stop_at"], message["by"]
            self._changed.notify_all()

    # ------------------------------------------------------------------- the relay

    async def _relay_home(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From JAX's client in this process to process 0."""
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            return
        _write(far_writer, {"relay": True})
        self._spawn(_pipe(reader, far_writer))
        # When process 0 goes away the client's connection stays open; see the top.
        await _pipe(far_reader, writer, close=False)

    async def _relay_to_service(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """At process 0: from another process to the service, which may still be starting."""
        for _ in range(int(self._start_timeout / _RETRY) + 1):
            try:
                near_reader, near_writer = await asyncio.open_connection(
                    "127.0.0.1", self.service_port
                )
                break
            except OSError:
                await asyncio.sleep(_RETRY)
        else:
            writer.close()
            return
        self._spawn(_pipe(reader, near_writer))
        await _pipe(near_reader, writer)


async def _read(reader: asyncio.StreamReader) -> Message | None:
    """The next object; None at the end of the connection, or for what is none."""
    try:
        line = await reader.readline()
        message = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError, asyncio.LimitOverrunError):
        return None
    return message if isinstance(message, dict) else None


def _write(writer: asyncio.StreamWriter, message: Message) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


async def _pipe(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, close: bool = True
) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    if close:
        writer.close()
