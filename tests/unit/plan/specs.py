"""Specifications drawn at random for the property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from mgray.plan import PlanSpec

SPECS = st.builds(
    PlanSpec,
    frames=st.integers(1, 32),
    batch=st.integers(1, 24),
    epochs=st.integers(6, 20),
    epoch_factor=st.sampled_from((0.3, 1.0, 1.5)),
    lr_steps=st.sampled_from(((0, 3), (0, 2, 5), (0, 5, 5))),
    long_cycle=st.sampled_from(("off", "stage", "run")),
    short_cycle=st.booleans(),
    lr_policy=st.sampled_from(("steps", "cosine")),
    size_multiple=st.sampled_from((1, 16, 32)),
    bn_group=st.sampled_from((4, 8)),
    warmup_epochs=st.sampled_from((0.0, 1.5)),
)
