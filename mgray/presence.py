"""Where a run that is in progress is: what its folder says, and whether that is ours to trust. Loads no Ray."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from mgray.jsonfile import write_json

DRIVER = "driver.json"
"""In a run's folder while it is in progress."""
AUTH_MODE = "RAY_AUTH_MODE"


@dataclass(frozen=True, slots=True)
class Presence:
    """The program that trains a run, and the address of the Ray that its driver is on."""

    address: str
    host: str
    pid: int

    def is_ours(self) -> bool:
        """Whether the program runs on this machine as our own user, and the address is one of this machine."""
        try:
            with socket.socket() as probe:
                probe.bind((self.address.rpartition(":")[0], 0))
            return self.host == socket.gethostname() and os.stat(f"/proc/{self.pid}").st_uid == os.getuid()
        except OSError:
            return False


def write_presence(folder: Path, address: str) -> None:
    """Say in a run's folder where its driver is, which has been started."""
    content = {"address": address, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    write_json(folder / DRIVER, content)


def read_presence(folder: Path) -> Presence | None:
    """What a run's folder says; None where the run is not in progress."""
    try:
        content = json.loads((folder / DRIVER).read_text())
        return Presence(str(content["address"]), str(content["host"]), int(content["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def use_own_token(folder: Path) -> None:
    """Let Ray, which must not be loaded yet, show its token to the Ray of a run of ours on this machine.

    A local Ray (2.60) asks for the token in its user's home folder, and does not send it to an address that is named. It is sent to
    nobody else's address, and not where RAY_AUTH_MODE says what to do.
    """
    found = read_presence(folder)
    if AUTH_MODE not in os.environ and found is not None and found.is_ours():
        os.environ[AUTH_MODE] = "token"
