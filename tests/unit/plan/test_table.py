"""The phase table says what the plan holds."""

from __future__ import annotations

from mgray.plan import Plan, PlanSpec


def test_kinetics_table() -> None:
    spec = PlanSpec(epoch_factor=1.5, long_cycle="stage", short_cycle=True, warmup_epochs=34.0)
    plan = Plan.compile(spec, 240_436)
    table = plan.table()
    rows = [dict(zip(table.head, row, strict=True)) for row in table.rows]
    assert len(rows) == 13
    assert rows[0] == {
        "phase": "0", "stage": "0", "epochs": "0-72", "frames": "8", "crop": "112/158/158", "clips": "1024/512/512",
        "LR": "0.8", "BN": "64", "stride": "2-8", "steps": f"{plan.phases[0].num_steps:,}", "cost": "9.8%",
        "clips/s": "10.71x",
    }  # fmt: skip
    assert rows[-1]["LR"] == "0.001..0.0001"
    assert "predicted speed-up: 3.43x by voxels, 3.42x by steps" in table.totals
    text = plan.describe()
    assert max(map(len, text.splitlines())) <= 100
    assert all(str(phase.num_steps)[-3:] in text for phase in plan.phases)


def test_baseline_table_has_one_number_a_cell() -> None:
    table = Plan.compile(PlanSpec(), 1000).table()
    (row,) = table.rows
    assert row[1:6] == ("-", "0-238", "32", "224", "64")
