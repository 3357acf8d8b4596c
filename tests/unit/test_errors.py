"""Errors are one line, and keep their fields across process borders."""

from __future__ import annotations

import pickle

import pytest

from mgray import errors
from mgray.errors import DataError, FieldError, MgrayError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FieldError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind: type[FieldError]) -> None:
    error = kind("plan.frames", 0, "must be at least 1", "give a positive whole number")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == "plan.frames = 0: must be at least 1; give a positive whole number"
    assert (copy.field, copy.value, copy.problem, copy.remedy) == (
        "plan.frames",
        0,
        "must be at least 1",
        "give a positive whole number",
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_tyro_lets_them_through(kind: type[FieldError]) -> None:
    assert issubclass(kind, MgrayError)
    assert not issubclass(kind, ValueError)


def test_values_of_several_lines_stay_on_one() -> None:
    assert "\n" not in str(FieldError("data.path", "a\nb", "does not exist", "give a folder"))


def test_the_secret_of_an_address_is_not_shown() -> None:
    error = DataError(
        "data.path", "s3://key:se/cr+et@bucket/a", "cannot be reached (s3://key:se/cr+et@bucket)", "check it"
    )
    assert "cr+et" not in str(error) and "s3://key:***@bucket/a" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
