"""Runs by name, as functions that derive from one another; `mgray plan NAME` prints one, `mgray train NAME` trains it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mgray.config import Run
from workloads.demo import demo, demo_baseline
from workloads.finetune import FINETUNE
from workloads.folder import folder, folder_baseline
from workloads.kinetics400 import KINETICS400
from workloads.recipes import from_scratch, on_gpus
from workloads.smoke import smoke

WORKLOADS: Mapping[str, Callable[[], Run]] = {
    "smoke": smoke,
    "demo": demo,
    "demo_baseline": demo_baseline,
    "folder": folder,
    "folder_baseline": folder_baseline,
    **KINETICS400,
    **FINETUNE,
}
FORMS = (
    "All have both cycles; NAME_baseline trains at the full shape throughout. Those of published datasets are for 8 GPUs; NAME_1gpu, NAME_128gpu have batch "
    "and learning rates for as many. Those from Kinetics weights (--model.init) have a form for fresh ones: NAME_scratch, NAME_scratch_1gpu."
)
"""What may follow a name, for people."""
_FORM = re.compile(r"(.+?)(_scratch)?(?:_([1-9]\d{0,4})gpus?)?")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A published dataset's name, and its training videos as they were published."""

    title: str
    num_train: int


DATASETS: Mapping[str, Dataset] = {
    "kinetics400": Dataset("Kinetics-400", 240_436),
    "ssv2": Dataset("Something-Something v2", 168_913),
    "charades": Dataset("Charades", 7_985),
    "ucf101": Dataset("UCF101 (split 1)", 9_537),
    "hmdb51": Dataset("HMDB51 (split 1)", 3_570),
}
"""By the first word of their workloads' names."""


def find(name: str) -> Run | None:
    """The run of a workload's name, or of one of its forms (`FORMS`); None where there is none."""
    if name in WORKLOADS:
        return WORKLOADS[name]()
    match = _FORM.fullmatch(name)
    if match is None or match[1] not in WORKLOADS or dataset_of(match[1]) is None:
        return None
    run = WORKLOADS[match[1]]()
    if match[2]:
        if match[1] not in FINETUNE:
            return None
        run = from_scratch(run)
    return on_gpus(run, int(match[3])) if match[3] else run


def starts_from(name: str) -> str:
    """What a workload's recipe is to be initialised with (`model.init`); empty where it trains from scratch."""
    match = _FORM.fullmatch(name)
    if match is None or match[2] or dataset_of(name) is None:
        return ""
    return "Kinetics-400" if match[1] in FINETUNE else "ImageNet" if "_in1k" in match[1] else ""


def dataset_of(name: str) -> Dataset | None:
    """The published dataset that a workload trains on."""
    return DATASETS.get(name.partition("_")[0])
