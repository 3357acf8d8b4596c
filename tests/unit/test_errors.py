"""Errors keep their fields across process borders."""

from __future__ import annotations

import pickle

from mgray.errors import ConfigError


def test_errors_survive_pickling() -> None:
    error = ConfigError("plan.frames", 0, "must be at least 1", "give a positive whole number")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ConfigError
    assert str(copy) == str(error) == "plan.frames = 0: must be at least 1; give a positive whole number"
    assert copy.field == "plan.frames"
