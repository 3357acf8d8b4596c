"""Talking to a run that is in progress, from another program: `mgray ctl`."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from mgray.driver import NAMESPACE, driver_name
from mgray.errors import ConfigError, MgrayError
from mgray.plan.state import Request, RequestKind
from mgray.presence import DRIVER, read_presence, write_presence

POLL_S = 0.1
READY_WITHIN_S = 120.0
"""Seconds within which the driver answers, and workers that train take a request up."""


@contextlib.contextmanager
def in_progress(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that no other program trains in it.

    Raises:
        ConfigError: another program trains this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "name", folder.name, f"is being trained by another program ({_owner(folder)})",
                "wait for it, stop it (mgray ctl), or give another --name",
            ) from None  # fmt: skip
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            (folder / DRIVER).unlink(missing_ok=True)


def announce(folder: Path) -> None:
    """Say in a run's folder where its driver is, which has been started."""
    write_presence(folder, ray.get_runtime_context().gcs_address)


def _owner(folder: Path) -> str:
    found = read_presence(folder)
    return f"process {found.pid} on {found.host}" if found else "it is just starting or ending"


@contextlib.contextmanager
def driver_of(folder: Path) -> Iterator[Any]:
    """The driver of the run in a folder, which is in progress.

    Raises:
        ConfigError: it is not, or its cluster cannot be reached from here.
    """
    found = read_presence(folder)
    if found is None:
        raise ConfigError(
            "RUN", str(folder), "is not in progress", "start it with mgray train, or name the folder of one that is"
        )
    joined = not ray.is_initialized()
    try:
        if joined:
            ray.init(address=found.address, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
        driver = ray.get_actor(driver_name(folder.name), namespace=NAMESPACE)
    except (ConnectionError, RuntimeError, ValueError, RayError):
        if joined:
            ray.shutdown()
        raise ConfigError(
            "RUN", str(folder), f"has no driver at {found.address} that can be reached from here",
            "set RAY_AUTH_MODE=token if its Ray is on another machine and asks for a token; "
            "if the program that trained it was killed, start it again with mgray train: it goes on where it stopped",
        ) from None  # fmt: skip
    try:
        yield driver
    finally:
        if joined:
            ray.shutdown()


def status_of(driver: Any) -> dict[str, Any]:
    """A driver's status, without what only its trainer needs."""
    found: dict[str, Any] = ray.get(driver.status.remote(), timeout=READY_WITHIN_S)
    return found


def ask(
    driver: Any,
    kind: RequestKind,
    value: float = 0.0,
    from_step: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Ask for something and wait until the workers have taken it up; returns the status then.

    It is asked again where the driver dies in between, and done once. Where they are busy it waits, and says so; where nothing is heard of
    them it is taken back.

    Raises:
        ConfigError: it cannot be done, or was not taken up in time.
    """
    request = Request(uuid.uuid4().hex, kind, value, from_step)
    request.check_values()
    try:
        return _taken(driver, request, say)
    except KeyboardInterrupt:
        with contextlib.suppress(MgrayError, RayError):
            _withdraw(driver, request, "interrupted")
            say(f"{kind} was taken up already")
        raise


def _taken(driver: Any, request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    deadline, said = time.monotonic() + READY_WITHIN_S, ""
    while True:
        doing = ""
        try:
            status = status_of(driver)
            if request.key in status["taken"]:
                return status
            if request.key in status["refused"]:
                raise status["refused"][request.key]
            doing = status["doing"]
            if status["ready"]:
                ray.get(driver.request.remote(request), timeout=READY_WITHIN_S)
        except MgrayError as error:
            raise own(error) from None
        except RayTaskError:
            raise
        except RayError:
            pass  # it is being started anew
        if doing:
            deadline = time.monotonic() + READY_WITHIN_S
            if doing != said:
                said = doing
                say(f"{request.kind} is taken up when the run trains: {doing}")
        if time.monotonic() > deadline:
            return _withdraw(driver, request, f"not taken up within {READY_WITHIN_S:.0f} s")
        time.sleep(POLL_S)


def _withdraw(driver: Any, request: Request, why: str) -> dict[str, Any]:
    """Take a request back; returns the status where the workers have just taken it up.

    Raises:
        ConfigError: it is taken back, or nobody can say.
    """
    try:
        if not ray.get(driver.withdraw.remote(request.key), timeout=READY_WITHIN_S):
            return status_of(driver)
    except RayError:
        raise ConfigError(
            "request", request.kind, f"was {why}, and the run's driver does not answer",
            "see whether the run has ended, and mgray ctl RUN status if not: it may still be taken up",
        ) from None  # fmt: skip
    raise ConfigError(
        "request", request.kind, f"was {why}, and is taken back", "see mgray ctl RUN status, and try again"
    )


def own(error: MgrayError) -> MgrayError:
    """Our error without Ray's wrapping around it, which reads as a page of tracebacks."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, MgrayError) else error
