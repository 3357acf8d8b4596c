"""One thread a process: several that share busy cores spend a hundred times as long waiting for each other."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("tests.support.runs")
