"""One thread a process: several that share busy cores spend a hundred times as long waiting for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
