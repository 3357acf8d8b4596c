"""Run: everything that defines a training run, as a tree of frozen values.

`Run.plan` is the schedule, the other sections say on what, with what model, how and where. A run is a pure function of
the sections plan, data, model and train; feed, scale, `INGEST_FIELDS` and `SPEED_FIELDS` may change from one attempt to the next
without changing its result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import typing
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal

from mgray.errors import ConfigError
from mgray.plan import PlanSpec, spec

INGEST_FIELDS = ("path", "videos", "max_broken", "levels")
"""Fields of the data section that have no bearing on the result: the content of the shards has."""
SPEED_FIELDS = ("compile", "channels_last", "micro_groups")
"""Fields of the train section that have no bearing on the result but for the rounding of floats: digests hold their defaults."""
NEWER_FIELDS = {
    "plan": spec.NEWER_FIELDS,
    "data": ("sampling", "jitter"),
    "model": ("init", "slow_frames", "temporal_blocks"),
    "train": ("ema", "mixup", "cutmix", "optimizer", "betas", "tf32", "compile", "randaugment", "randaugment_growth"),
}
"""Fields that digests leave out at their defaults: runs from before them go on."""

AMENDMENTS = "amendments"
"""In a run's JSON file beside the run's fields: those that a search made to its schedule (`ScheduleState.to_json`)."""


def _require(ok: bool, name: str, value: object, problem: str, remedy: str) -> None:
    if not ok:
        raise ConfigError(name, value, problem, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection:
    """Which videos are trained on, and how a clip is cut from one."""

    path: str = ""
    """Shards from `mgray ingest`, a folder of videos (`[split/]class/clip.mp4`), a list (CSV `path,label[,split,group]`), or lists of
    Kinetics, Something-Something v2, Charades, UCF101 or HMDB51 as they are published."""
    videos: str = ""
    """Folder of the videos that lists name, where it is not that of the lists."""
    val_fraction: float = 0.2
    """Share of the videos held out for validation where the data names no split (whole groups, a fixed draw)."""
    max_broken: float = 0.01
    """Share of videos that may fail to decode when they are ingested; they are left out and listed, above it is an error."""
    levels: tuple[int, ...] = ()
    """Short sides in pixels that videos are stored at when they are ingested, falling; empty takes what suits the plan's crops."""
    enlarge: float = 1.0
    """How much a level coarser than the finest may be enlarged: above 1 decodes faster and blurs; 1 reads only levels that cover a crop."""
    fps: float = 0.0
    """Frames per second that `plan.stride` counts in; 0 counts each video's own frames."""
    sampling: Literal["stride", "segments"] = "stride"
    """Frames of a clip: each `plan.stride` after the one before, or one of each of T equal parts of the whole video, drawn from it in
    training and its middle one otherwise (Something-Something v2)."""
    jitter: Literal["uniform", "inverse"] = "uniform"
    """How the short side is drawn between its bounds: uniformly, or uniformly in its inverse, so that small ones come more often."""
    flip: bool = True
    """Mirror half of the clips left to right (not for classes that a mirror image changes)."""
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    """Mean of red, green, blue (0..1) that is subtracted from a clip."""
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    """Standard deviation of red, green, blue that a clip is divided by."""

    def __post_init__(self) -> None:
        _require(0 < self.val_fraction < 1, "data.val_fraction", self.val_fraction, "is outside (0, 1)", "use e.g. 0.2")
        _require(0 <= self.max_broken < 1, "data.max_broken", self.max_broken, "is outside [0, 1)", "use e.g. 0.01")
        falling = all(finer > coarser >= 2 for finer, coarser in zip(self.levels, self.levels[1:], strict=False))
        _require(
            falling and all(level >= 2 for level in self.levels), "data.levels", self.levels, "are no falling short sides",
            "give e.g. 256 226 160",
        )  # fmt: skip
        _require(
            math.isfinite(self.enlarge) and self.enlarge >= 1,
            "data.enlarge",
            self.enlarge,
            "is below 1",
            "give 1 or more",
        )
        _require(
            math.isfinite(self.fps) and self.fps >= 0, "data.fps", self.fps, "must not be negative",
            "give frames per second, or 0 for each video's own",
        )  # fmt: skip
        _require(all(s > 0 for s in self.std), "data.std", self.std, "must be positive", "use e.g. 0.225 0.225 0.225")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSection:
    """The network."""

    name: str = "slowfast"
    """A name of `mgray.model.MODELS`, e.g. slowfast, slow, i3d, i3d_nln, r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v1_b, mvit_v2_s, swin3d_t."""
    init: str = ""
    """Initial weights: a file from `mgray convert`, or a run's folder or checkpoint. A head for other classes starts afresh."""
    depth: int = 50
    """SlowFast, Slow, I3D: layers of the ResNet (18 and 34 with basic blocks, 50 and 101 with bottlenecks; 10 is a small one for CPUs)."""
    width: int = 64
    """SlowFast, Slow, I3D: channels of the stem, in SlowFast the slow pathway's (64 in the papers)."""
    alpha: int = 4
    """SlowFast: frames of the fast pathway for one of the slow pathway."""
    beta_inv: int = 8
    """SlowFast: channels of the slow pathway for one of the fast pathway."""
    fusion_kernel: int = 7
    """SlowFast: frames that the lateral convolution from fast to slow spans."""
    slow_frames: Literal["centred", "spread"] = "centred"
    """SlowFast: the slow pathway's frames, every alpha-th in the middle of the clip, or spread from first to last (as in PySlowFast)."""
    temporal_blocks: int = 0
    """SlowFast, Slow, I3D: blocks of a stage after which convolutions span one frame (6 in SlowFast R101 50-50); 0 for none."""
    dropout: float = 0.5
    """Dropout before the classifier."""

    def __post_init__(self) -> None:
        for name in ("width", "alpha", "beta_inv", "fusion_kernel"):
            value = getattr(self, name)
            _require(value >= 1, f"model.{name}", value, "must be at least 1", "give a positive whole number")
        _require(
            self.temporal_blocks >= 0, "model.temporal_blocks", self.temporal_blocks, "must not be negative", "give 0 or more"
        )  # fmt: skip
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "is outside [0, 1)", "use e.g. 0.5")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSection:
    """Optimisation, evaluation and numerical precision."""

    seed: int = 0
    """Seeds initial weights, the order of samples, crops and dropout."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer; AdamW (usual for transformers) wants a `plan.lr` some 100 times smaller and a `weight_decay` of 0.05."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov momentum of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's moments of first and second order."""
    weight_decay: float = 1e-4
    """Weight decay; parameters of batch and layer norms have none."""
    label_smoothing: float = 0.0
    """Probability mass that is spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup: clips of a BN group are blended by a share from Beta(alpha, alpha); 0 does not mix (0.8 is usual)."""
    cutmix: float = 0.0
    """Alpha of CutMix: a box of a clip is another's, in all frames; 0 does not mix. With mixup, each is taken half of the time."""
    randaugment: int = 0
    """Magnitude of RandAugment, 1 to 30, with one draw for all frames of a clip; 0 does without (7 to 9 are usual)."""
    randaugment_growth: float = 0.0
    """Exponent of a grid's voxels over the base shape's that the magnitude is scaled by: above 0, coarse grids are changed less."""
    ema: float = 0.0
    """Decay, over `plan.batch` clips, of the moving average of weights that is validated and kept (e.g. 0.999); 0 keeps none."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    evals: int = 20
    """Validations during the run, at equal training cost (voxels) from one to the next; the last is after the last step."""
    eval_batch: int = 32
    """Clips of a validation batch, on each worker."""
    precise_bn: int = 0
    """Base-shape batches from which running statistics are re-estimated before a validation; 0 keeps the running average."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Arithmetic of forward and backward; bfloat16 is autocast on GPUs (CPUs keep to float32). float64 is for proofs of equality."""
    channels_last: bool = True
    """Lay tensors out channels last (faster on CPUs and on tensor cores)."""
    tf32: bool = True
    """Let GPUs round the factors of float32 products to 10 bits (TF32, several times faster); has no bearing on bfloat16 and float64."""
    compile: bool = False
    """torch.compile, one graph for each shape, kept in the storage. Pays on GPUs in runs of hours: a graph takes a minute or so once."""
    micro_groups: int = 0
    """BN groups that are computed at once, with the same result; 0 finds out, for each batch, how many fit in a GPU's memory."""

    def __post_init__(self) -> None:
        for name in ("weight_decay", "clip_grad", "momentum"):
            value = getattr(self, name)
            _require(
                math.isfinite(value) and value >= 0, f"train.{name}", value, "must not be negative", "give 0 or more"
            )
        for name in ("precise_bn", "micro_groups"):
            _require(
                getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must not be negative", "give 0 or more"
            )
        for name in ("evals", "eval_batch"):
            _require(
                getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1", "give 1 or more"
            )
        _require(
            not self.nesterov or self.momentum > 0, "train.momentum", self.momentum, "does not go with Nesterov momentum",
            "raise it, or give --train.no-nesterov",
        )  # fmt: skip
        _require(
            all(0 <= beta < 1 for beta in self.betas),
            "train.betas",
            self.betas,
            "are outside [0, 1)",
            "use e.g. 0.9 0.999",
        )
        _require(
            0 <= self.label_smoothing < 1,
            "train.label_smoothing",
            self.label_smoothing,
            "is outside [0, 1)",
            "use e.g. 0.1",
        )
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            _require(
                math.isfinite(value) and value >= 0, f"train.{name}", value, "is no alpha of a Beta distribution",
                "use e.g. 0.8, or 0 for none",
            )  # fmt: skip
        _require(
            0 <= self.randaugment <= 30, "train.randaugment", self.randaugment, "is outside 0..30", "use e.g. 9, or 0 for none"
        )  # fmt: skip
        _require(
            math.isfinite(self.randaugment_growth) and self.randaugment_growth >= 0, "train.randaugment_growth", self.randaugment_growth,
            "must not be negative", "use e.g. 0.25, or 0 for one strength on all grids",
        )  # fmt: skip
        _require(0 <= self.ema < 1, "train.ema", self.ema, "is outside [0, 1)", "use e.g. 0.999, or 0 for none")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSection:
    """Decoding: has no bearing on what is trained, only on how fast."""

    source: Literal["shards", "files"] = "shards"
    """Where clips are decoded from, if data.path names videos: shards that are ingested first, or the files as they are (slower)."""
    decoders: int = 0
    """Decode tasks that run at once for each worker, beside it on its node; 0 measures how many keep up with its training."""
    ahead: int = 32
    """Steps of one decoding pipeline; the next is opened when half of one is used up."""
    ahead_gib: float = 1.0
    """Memory in GiB that the clips of one pipeline may take, of which two are open at once for each worker; a pipeline is shorter where its
    steps are large, but of 2 steps at least."""

    def __post_init__(self) -> None:
        _require(self.ahead_gib > 0, "feed.ahead_gib", self.ahead_gib, "must be positive", "give e.g. 1")
        _require(self.ahead >= 1, "feed.ahead", self.ahead, "must be at least 1", "give 1 or more")
        _require(self.decoders >= 0, "feed.decoders", self.decoders, "must not be negative", "give 0 to measure it")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleSection:
    """Workers and their resources; may change from one attempt to the next."""

    workers: int | str = 1
    """Training workers (ranks), one per GPU where there are GPUs; MIN:MAX (e.g. 2:16) takes as many as the cluster has room for, also while it runs."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Give each worker a GPU; auto does so where Ray finds one at the start, yes waits for them on a cluster."""
    cpus: float = 1.0
    """CPUs that Ray reserves for each worker."""
    threads: int = 0
    """Threads of torch in each worker; 0 is max(1, cpus)."""
    max_failures: int = 8
    """Failures in a row, with no new checkpoint between, after which the run is given up (each restarts from the last checkpoint)."""
    save_every: int = 200
    """Steps from one checkpoint to the next, at most; the last is at the end."""
    save_s: float = 60.0
    """Seconds from one checkpoint to the next, at most; they are written while training goes on. 0 counts steps only."""
    resize_every_s: float = 60.0
    """Least seconds from one start of the workers to their next growth, where the number of workers is MIN:MAX."""
    address: str = ""
    """Ray cluster to join, e.g. auto or ray://head:10001; empty starts a local one."""

    def __post_init__(self) -> None:
        least, colon, most = str(self.workers).partition(":")
        _require(
            least.isdecimal() and int(least) >= 1 and (not colon or (most.isdecimal() and int(most) >= int(least))),
            "scale.workers", self.workers, "is no number of workers", "give e.g. 2, or 2:16 for 2 to 16",
        )  # fmt: skip
        _require(self.save_every >= 1, "scale.save_every", self.save_every, "must be at least 1", "give 1 or more")
        for name in ("save_s", "resize_every_s"):
            value = getattr(self, name)
            _require(
                math.isfinite(value) and value >= 0, f"scale.{name}", value, "must not be negative", "give seconds"
            )
        _require(self.cpus > 0, "scale.cpus", self.cpus, "must be positive", "give e.g. 1")
        for name in ("threads", "max_failures"):
            _require(
                getattr(self, name) >= 0, f"scale.{name}", getattr(self, name), "must not be negative", "give 0 or more"
            )

    @property
    def min_workers(self) -> int:
        """The fewest workers that are started."""
        return int(str(self.workers).partition(":")[0])

    @property
    def max_workers(self) -> int:
        """The most workers that are started."""
        return int(str(self.workers).rpartition(":")[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training run. The same plan, data, model and train sections give the same result on any number of workers."""

    name: str = "run"
    """Name of the run: its records are under `storage`/`name`. The same name again goes on where that run stopped."""
    storage: str = "runs"
    """Folder that holds the records and checkpoints of runs; on a cluster one that all nodes share."""
    track: Literal["", "mlflow", "wandb"] = ""
    """Tracker beside TensorBoard, if it is installed: mlflow (MLFLOW_TRACKING_URI, else `storage`/mlflow) or wandb."""
    plan: PlanSpec = field(default_factory=PlanSpec)
    data: DataSection = field(default_factory=DataSection)
    model: ModelSection = field(default_factory=ModelSection)
    train: TrainSection = field(default_factory=TrainSection)
    feed: FeedSection = field(default_factory=FeedSection)
    scale: ScaleSection = field(default_factory=ScaleSection)

    def __post_init__(self) -> None:
        ok = bool(self.name) and self.name not in (".", "..") and not set(self.name) & set("/\\\0")
        _require(ok, "name", self.name, "is no folder name", "use letters, digits, - and _")

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values; `Run.from_json` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Run:
        """The run of a tree that `to_json` wrote.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type or out of bounds.
        """
        run = _parse(cls, tree, "")
        assert isinstance(run, cls)
        return run

    def digest(self) -> str:
        """SHA-256 of what determines the result: plan, data (but for where it lies), model and train (but for how it is computed)."""
        tree = self.to_json()
        tree["train"] |= {key: value for key, value in Run().to_json()["train"].items() if key in SPEED_FIELDS}
        kept = {key: tree[key] for key in ("plan", "data", "model", "train")}
        kept["data"] = {key: value for key, value in kept["data"].items() if key not in INGEST_FIELDS}
        for section, newer in NEWER_FIELDS.items():
            usual = Run().to_json()[section]
            kept[section] = {
                key: value for key, value in kept[section].items() if key not in newer or value != usual[key]
            }
        if self.model.init:
            kept["model"]["init"] = os.path.abspath(os.path.expanduser(self.model.init))
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _parse(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotated type `kind`; `name` is the dotted name for messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(name or "run", value, "is no mapping", "write the section's fields as key and value")
        hints = typing.get_type_hints(kind)
        known = [f.name for f in dataclasses.fields(kind)]
        for key in value:
            if key not in known:
                raise ConfigError(f"{name}{key}", value[key], "is no known field", f"use one of {', '.join(known)}")
        return kind(**{key: _parse(hints[key], item, f"{name}{key}.") for key, item in value.items()})  # type: ignore[operator]
    shown = name.removesuffix(".")
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(shown, value, "is no choice", f"use one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(shown, value, "is no list", "write a list of values")
        if arguments[-1] is Ellipsis:
            return tuple(_parse(arguments[0], item, name) for item in value)
        if len(arguments) != len(value):
            raise ConfigError(shown, value, f"has {len(value)} entries", f"give {len(arguments)}")
        return tuple(_parse(item_kind, item, name) for item_kind, item in zip(arguments, value, strict=True))
    if origin is UnionType:
        fitting = [kind for kind in arguments if isinstance(value, kind) and not isinstance(value, bool)]
        if not fitting:
            names = " or ".join(kind.__name__ for kind in arguments)
            raise ConfigError(shown, value, f"is no {names}", f"give a value of type {names}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(shown, value, f"is no {kind.__name__}", f"give a value of type {kind.__name__}")
    return value
