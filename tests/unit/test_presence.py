"""Where a run in progress is, and to whom Ray's token is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mgray.presence import AUTH_MODE, DRIVER, Presence, read_presence, use_own_token, write_presence


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_presence(tmp_path) is None
    write_presence(tmp_path, "127.0.0.1:6379")
    found = read_presence(tmp_path)
    assert found is not None and (found.address, found.pid) == ("127.0.0.1:6379", os.getpid())
    assert found.is_ours()
    for content in ("", "{}", "[]", '{"address": 1}'):
        (tmp_path / DRIVER).write_text(content)
        assert read_presence(tmp_path) is None


@pytest.mark.parametrize(
    "other",
    [
        Presence("192.0.2.77:6379", "", 0),  # no address of this machine
        Presence("", "elsewhere", 0),
        Presence("", "", 2**22 + 1),  # no process
        Presence("", "", 1) if os.getuid() else Presence("example.invalid:1", "", 0),
    ],
)
def test_the_token_is_shown_to_our_own_runs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Presence
) -> None:
    monkeypatch.delenv(AUTH_MODE, raising=False)
    write_presence(tmp_path, "127.0.0.1:6379")
    content = json.loads((tmp_path / DRIVER).read_text())
    changed = {
        name: value for name, value in (("address", other.address), ("host", other.host), ("pid", other.pid)) if value
    }
    (tmp_path / DRIVER).write_text(json.dumps(content | changed))
    use_own_token(tmp_path)
    assert AUTH_MODE not in os.environ
    (tmp_path / DRIVER).write_text(json.dumps(content))
    use_own_token(tmp_path)
    assert os.environ.pop(AUTH_MODE) == "token"
    monkeypatch.setenv(AUTH_MODE, "disabled")
    use_own_token(tmp_path)
    assert os.environ[AUTH_MODE] == "disabled"
