"""The processes of a run, as the program sees them."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from jaxmlcl import __version__
from jaxmlcl.distributed._channel import Channel, Lost, MissingError
from jaxmlcl.distributed._launcher import Place, Settings, find_place
from jaxmlcl.errors import ConfigError, Preempted, UserError

_T = TypeVar("_T")


class Group:
    """The processes of a run, of which this is one; by default the only one.

    Everything here is called by every process, in the same order.

    Example:
      >>> alone = Group()
      >>> alone.primary, alone.share({"step": 3}), alone.once(lambda: "written")
      (True, {'step': 3}, 'written')
    """

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel
        self.count = channel.count if channel else 1
        self.index = channel.index if channel else 0

    @property
    def primary(self) -> bool:
        """Whether this is process 0, which writes what is written once."""
        return self.index == 0

    @property
    def launched(self) -> bool:
        """Whether a launcher or flags made this a run of processes, be it of one."""
        return self._channel is not None

    @property
    def name(self) -> str:
        """This process in a message."""
        return self._channel.who(self.index) if self._channel else "process 0"

    def share(self, value: _T) -> _T:
        """What process 0 gives, at every process; anything that JSON can hold."""
        return self._channel.share(value) if self._channel else value

    def once(self, action: Callable[[], _T]) -> _T:
        """Do something at process 0 only; all get its result, or the error that a user reads.

        Args:
          action: returns what JSON can hold.

        Raises:
          UserError: the action raised it.
        """
        if self._channel is None:
            return action()
        if not self.primary:
            answer = self._channel.share()
            if "error" in answer:
                raise UserError(answer["error"])
            return answer["result"]
        try:
            result = action()
        except UserError as error:
            self._channel.share({"error": str(error)})
            raise
        return self._channel.share({"result": result})["result"]

    def compare(self, value: _T, difference: Callable[[_T, _T], str], mend: str) -> None:
        """Refuse, in all processes, values that are not those of process 0.

        Args:
          value: this process's; anything that JSON can hold.
          difference: from process 0's value and another's what differs, in words; empty if nothing.
          mend: what to do.

        Raises:
          UserError: naming the process.
        """
        if self._channel is None:
            return
        channel, values = self._channel, self._channel.collect(value)

        def check() -> None:
            for index, other in enumerate(values):
                if found := difference(values[0], other):
                    raise ConfigError(
                        f"{channel.who(index)} differs from process 0: {found}; {mend}"
                    )

        self.once(check)

    def ask_to_stop(self, reason: str) -> None:
        """Ask all to stop at a common place; for the handler of a signal."""
        if self._channel is not None:
            self._channel.ask_to_stop(reason)

    def reached(self) -> str | None:
        """One more place where all could stop; who asked for it, if it is this one."""
        return self._channel.reached() if self._channel else None

    def wait_for_word(self, seconds: float) -> None:
        """Give the channel time to hear that another process is gone, which ends this one."""
        time.sleep(seconds)

    def end(self, code: int, message: str) -> None:
        """Tell the others that this process ends, which ends them too."""
        if self._channel is not None:
            self._channel.end(code, message)


_current = Group()


def group() -> Group:
    """The processes of this run."""
    return _current


@contextlib.contextmanager
def join(settings: Settings, on_lost: Callable[[Lost], None]) -> Iterator[Group]:
    """Find the other processes and start JAX in all of them; before any device is touched.

    When the block ends, or all were asked to stop, they leave together. Any other error is the
    caller's to tell with `Group.end`, before the program ends at once: closing JAX's connections
    would wait for the others.

    Args:
      settings: what the command line says.
      on_lost: called in another thread when a process is gone; it should end this one.

    Raises:
      UserError: somebody is missing, or the processes do not fit together.
    """
    global _current
    place = find_place(settings)
    if place is None:
        yield _current
        return
    channel = _open(place, settings, on_lost)
    _delay_abort()
    import jax

    # On the way to its own machine JAX's client must not ask a proxy.
    os.environ["no_grpc_proxy"] = "127.0.0.1,localhost"  # noqa: SIM112 - gRPC's own name
    jax.config.update("jax_check_proxy_envs", False)
    # It takes SIGTERM away from Python, and only for training; `reached` serves every command.
    jax.config.update("jax_enable_preemption_service", False)
    port = channel.service_port if place.index == 0 else channel.relay_port
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            place.count,
            place.index,
            local_device_ids=list(place.local_devices) if place.local_devices else None,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"127.0.0.1:{port}",
            initialization_timeout=math.ceil(settings.start_timeout),
            # The channel sees it first, and says more.
            heartbeat_timeout_seconds=math.ceil(settings.timeout) + 60,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        message = f"JAX cannot start {place.count} processes: {reason}"
        channel.end(UserError.exit_code, message)
        raise UserError(message) from error
    before, _current = _current, Group(channel)
    stopped: Preempted | None = None
    try:
        yield _current
    except Preempted as error:
        # All stop at the same place, so they can leave together as well.
        stopped = error
    finally:
        _current = before
    # JAX waits five minutes for the others; what process 0 still has to write may take longer.
    channel.meet()
    jax.distributed.shutdown()
    channel.close()
    if stopped is not None:
        raise stopped


def _open(place: Place, settings: Settings, on_lost: Callable[[Lost], None]) -> Channel:
    import jax

    channel = Channel(
        place.host,
        place.port,
        place.count,
        place.index,
        name=socket.gethostname(),
        facts={"jaxmlcl": __version__, "JAX": jax.__version__},
        start_timeout=settings.start_timeout,
        silence=settings.timeout,
        on_lost=on_lost,
    )
    if place.index == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            channel.service_port = probe.getsockname()[1]
    try:
        channel.open()
    except MissingError as error:
        raise UserError(f"start of {place.count} processes: {error}") from None
    return channel


def _delay_abort() -> None:
    """Let the channel speak first where a library aborts this process.

    When another process dies in the midst of a message, Gloo may abort this one from a thread of
    its own, with a line of C++ in place of who was lost. `sleep` as the handler of SIGABRT, whose
    number is 6, gives the channel as many seconds; after them the process dies as it would have.
    It is one of the few functions that a handler may call, and needs no interpreter.
    """
    if os.name == "posix":
        library = ctypes.CDLL(None)
        library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        library.signal.restype = ctypes.c_void_p
        library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def describe_devices() -> str:
    """Processes x local devices = total, in words."""
    import jax

    local, total = jax.local_device_count(), jax.device_count()
    platform = jax.devices()[0].platform
    several = "es" if jax.process_count() > 1 else ""
    return (
        f"{jax.process_count()} process{several} x {local} local devices = {total} {platform} "
        "devices"
    )


def check_devices(group: Group, settings: Settings) -> None:
    """Refuse devices that are not those that were asked for.

    Raises:
      ConfigError: with what was found and what was asked for.
    """
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error) or "none of the platforms that were asked for"
        raise ConfigError(
            f"JAX finds no device ({reason}); look at JAX_PLATFORMS and at how JAX is installed"
        ) from None
    found = [0] * group.count
    for device in devices:
        if device.process_index < group.count:
            found[device.process_index] += 1
    shown = describe_devices()
    if jax.process_count() != group.count:
        raise ConfigError(
            f"{shown}, but {group.count} processes were asked for: JAX's {devices[0].platform} "
            "devices do not see each other; look at JAX_PLATFORMS and at how JAX is installed"
        )
    if len(set(found)) > 1:
        each = ", ".join(f"{count} of process {index}" for index, count in enumerate(found))
        raise ConfigError(
            f"the processes have different numbers of devices ({each}); give each the same"
        )
    if settings.devices is not None and settings.devices != len(devices):
        raise ConfigError(
            f"{shown}, but --distributed.devices asks for {settings.devices}; start as many "
            "processes as that takes, or look for devices that a process does not see"
        )
