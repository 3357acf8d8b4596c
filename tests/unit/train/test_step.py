"""A step's arithmetic: normalisation, micro-batches, the gradient of the global batch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mgray.config import DataSection, Run, TrainSection
from mgray.data.source import Block
from mgray.errors import TrainingError
from mgray.model.norm import commit_running_stats, convert_batchnorm, defer_running_stats, grouped_norms
from mgray.plan import BatchShape, share_of
from mgray.train import step as step_module
from mgray.train.memory import GroupsAtOnce, bytes_to_come, largest_that_fits, memory_key, out_of_memory
from mgray.train.session import LocalSession
from mgray.train.step import Worker

DATA = DataSection(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@dataclass
class Rank(LocalSession):
    """A rank among several that never meets the others."""

    asked: list[tuple[int, ...]] = field(default_factory=list)

    def subgroup(self, ranks: tuple[int, ...]) -> str:
        self.asked.append(ranks)
        return f"group {ranks}"


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv3d(3, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ]
    model = convert_batchnorm(nn.Sequential(*layers)).double()
    defer_running_stats(model)
    return model.train()


def block(clips: int) -> Block:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (clips, 2, 6, 6, 3), np.uint8)
    count = np.arange(clips)
    return Block(0, 0, pixels, count % 3, count, count)


def worker(train: TrainSection, rank: int = 0, world_size: int = 1) -> Worker:
    return Alone(network(), Rank(Path("unused"), rank=rank, world_size=world_size), DATA, train)


class Alone(Worker):
    """A worker that commits the statistics of its own clips only."""

    def commit(self) -> None:
        commit_running_stats(grouped_norms(self.module))


def part(batch: Block, clips: range) -> Block | None:
    """What a rank has of a batch."""
    if not clips:
        return None
    mine = slice(clips.start, clips.stop)
    return Block(
        batch.index, 0, batch.clips_NTHWC[mine], batch.labels_N[mine], batch.samples_N[mine], batch.positions_N[mine]
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_clips_are_normalised(precision: str, tolerance: float, channels_last: bool) -> None:
    """Against the formula in float64; bfloat16 is autocast's business, not the input's."""
    batch = block(3)
    batch.clips_NTHWC.flags.writeable = False  # as a view of Ray's object store
    ours = worker(TrainSection(precision=precision, channels_last=channels_last))
    got = ours.clips(batch)
    want = ((batch.clips_NTHWC / 255.0 - np.array(DATA.mean)) / np.array(DATA.std)).transpose(0, 4, 1, 2, 3)
    assert got.shape == (3, 3, 2, 6, 6)
    assert got.dtype == (torch.float64 if precision == "float64" else torch.float32)
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=tolerance * 4)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)
    assert torch.equal(ours.clips(batch, range(1, 3)), got[1:])


@pytest.mark.parametrize("micro_groups", [0, 1, 2])
def test_the_gradient_is_that_of_the_global_mean(micro_groups: int) -> None:
    """Groups normalised by themselves, gradients of the mean loss over all clips, however many are computed at once."""
    train = TrainSection(precision="float64", micro_groups=micro_groups)
    ours, batch = worker(train), block(7)
    optimizer = torch.optim.SGD(ours.module.parameters(), lr=0.0)
    sums = ours.step(batch, BatchShape(7, 2, 6, 6), 3, torch.arange(7), optimizer)
    reference = network()
    clips, labels = ours.clips(batch), torch.from_numpy(batch.labels_N)
    logits = []
    for first, end in ((0, 2), (2, 4), (4, 7)):
        norm = reference[1]
        norm.groups = None
        logits.append(reference(clips[first:end]))
    loss = F.cross_entropy(torch.cat(logits), labels)
    loss.backward()
    assert sums[0].item() / 7 == pytest.approx(loss.item(), rel=1e-12)
    assert sums[1].item() == (torch.cat(logits).argmax(1) == labels).sum().item()
    for mine, theirs in zip(ours.module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_uneven_shares_weigh_by_their_clips(world_size: int) -> None:
    """The average over ranks, as DDP takes it, is the gradient of one process; so are the sums of losses."""
    train = TrainSection(precision="float64", label_smoothing=0.1)
    shape, groups, batch = BatchShape(15, 2, 6, 6), 7, block(15)
    alone = worker(train)
    total = alone.step(batch, shape, groups, torch.arange(15), torch.optim.SGD(alone.module.parameters(), lr=0.0))
    sums, gradients = torch.zeros(2, dtype=torch.float64), None
    sizes = []
    for rank in range(world_size):
        share = share_of(rank, world_size, 15, groups)
        sizes.append(len(share.clips))
        ours = worker(train, rank=rank, world_size=world_size)
        keys = torch.arange(share.clips.start, share.clips.stop)
        sums += ours.step(part(batch, share.clips), shape, groups, keys, torch.optim.SGD(ours.module.parameters(), 0.0))
        mine = [p.grad / world_size for p in ours.module.parameters()]
        gradients = mine if gradients is None else [a + b for a, b in zip(gradients, mine, strict=True)]
    assert len(set(sizes)) > 1
    torch.testing.assert_close(sums, total, rtol=1e-12, atol=0)
    for together, parameter in zip(gradients, alone.module.parameters(), strict=True):
        torch.testing.assert_close(together, parameter.grad, rtol=1e-10, atol=1e-12)


def test_a_rank_without_clips_adds_a_zero_gradient_and_no_statistics() -> None:
    ours = worker(TrainSection(precision="float64"), rank=0, world_size=3)
    shape = BatchShape(2, 2, 6, 6)
    assert not share_of(0, 3, 2, 1).clips
    before = {name: value.clone() for name, value in ours.module.state_dict().items()}
    optimizer = torch.optim.SGD(ours.module.parameters(), lr=1.0)
    sums = ours.step(None, shape, 1, torch.zeros(0, dtype=torch.int64), optimizer)
    assert sums.tolist() == [0.0, 0.0]
    assert all(p.grad is not None and not p.grad.any() for p in ours.module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in ours.module.state_dict().items())
    assert all(module.training for module in ours.module.modules())


@pytest.mark.parametrize(("limit", "micro_groups"), [(0.01, 0), (0.01, 1), (1e6, 0)])
def test_a_long_gradient_is_clipped(limit: float, micro_groups: int) -> None:
    """The whole step's, in its direction, to the limit; a shorter one is left alone."""
    batch, shape, gradients = block(4), BatchShape(4, 2, 6, 6), []
    for train in (
        TrainSection(precision="float64"),
        TrainSection(precision="float64", clip_grad=limit, micro_groups=micro_groups),
    ):
        ours = worker(train)
        ours.step(batch, shape, 2, torch.arange(4), torch.optim.SGD(ours.module.parameters(), lr=0.0))
        gradients.append(torch.cat([p.grad.flatten() for p in ours.module.parameters()]))
    norm = gradients[0].square().sum().sqrt()
    assert norm > 0.01
    want = gradients[0] * min(1.0, limit / (float(norm) + 1e-6))
    torch.testing.assert_close(gradients[1], want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_update_follows_smoothed_labels(smoothing: float) -> None:
    """Against the formula: all classes' share of the mass, and the rest for the label."""
    batch, shape, lr = block(4), BatchShape(4, 2, 6, 6), 0.5
    ours, reference = worker(TrainSection(precision="float64", label_smoothing=smoothing)), network()
    optimizer = torch.optim.SGD(ours.module.parameters(), lr=lr)
    sums = ours.step(batch, shape, 1, torch.arange(4), optimizer)
    logs = reference(ours.clips(batch)).log_softmax(1)
    wanted = torch.full_like(logs, smoothing / 3)
    wanted[torch.arange(4), torch.from_numpy(batch.labels_N)] += 1 - smoothing
    loss = -(wanted * logs).sum(1).mean()
    loss.backward()
    assert sums[0].item() / 4 == pytest.approx(loss.item(), rel=1e-12)
    for mine, theirs in zip(ours.module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - lr * theirs.grad, rtol=1e-10, atol=1e-12)


def test_observing_changes_running_statistics_only() -> None:
    ours = worker(TrainSection(precision="float64"))
    before = {name: value.clone() for name, value in ours.module.state_dict().items()}
    ours.observe(block(6), BatchShape(6, 2, 6, 6), 2)
    changed = {name for name, value in ours.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(p.grad is None for p in ours.module.parameters())


def test_whole_groups_go_to_ranks() -> None:
    sizes = []
    for rank in range(3):
        ours = worker(TrainSection(), rank=rank, world_size=3)
        parts = ours.micro_batches(BatchShape(28, 2, 6, 6), 5)
        assert len(parts) == 1 and ours._session.asked == []
        assert parts[0].groups.process_group is None
        sizes += parts[0].groups.sizes
    assert sizes == [5, 6, 5, 6, 6]


def test_a_group_that_spans_ranks_is_synchronised_over_just_them() -> None:
    """Two groups on five ranks; every rank asks for every process group, in the same order."""
    seen = []
    for rank in range(5):
        ours = worker(TrainSection(), rank=rank, world_size=5)
        (part,) = ours.micro_batches(BatchShape(10, 2, 6, 6), 2)
        assert ours._session.asked == [(0, 1), (2, 3, 4)]
        seen.append(part.groups.process_group)
    assert seen == ["group (0, 1)"] * 2 + ["group (2, 3, 4)"] * 3


def test_ranks_without_clips_have_no_part() -> None:
    idle = []
    for rank in range(4):
        ours = worker(TrainSection(), rank=rank, world_size=4)
        parts = ours.micro_batches(BatchShape(2, 2, 6, 6), 1)
        idle.append(not parts)
        assert ours._session.asked == [(1, 3)]
    assert idle == [True, False, True, False]


def test_ranks_without_clips_ask_for_process_groups_when_statistics_are_observed() -> None:
    """A group is made by all ranks together: one that skips it lets the others wait for ever."""
    asked = []
    for rank in range(4):
        ours = worker(TrainSection(), rank=rank, world_size=4)
        ours._logits = lambda *_, **__: None  # type: ignore[assignment,method-assign]
        ours.observe(part(block(2), share_of(rank, 4, 2, 1).clips), BatchShape(2, 2, 6, 6), 1)
        asked.append(ours._session.asked)
    assert asked == [[(1, 3)]] * 4


def test_micro_batches_are_whole_groups() -> None:
    ours = worker(TrainSection(micro_groups=2), rank=1, world_size=2)
    parts = ours.micro_batches(BatchShape(23, 2, 6, 6), 10)
    assert [part.clips for part in parts] == [range(0, 5), range(5, 9), range(9, 12)]
    assert [part.groups.sizes for part in parts] == [(2, 3), (2, 2), (3,)]


@dataclass
class Cramped:
    """Stands for a device whose memory holds some clips at once: a hook of a layer, in the forward or backward pass."""

    clips: int
    backward: bool
    seen: list[int] = field(default_factory=list)

    def put_on(self, module: nn.Module) -> None:
        def check(layer: nn.Module, tensors: tuple[torch.Tensor, ...], _: object) -> None:
            self.seen.append(len(tensors[0]))
            if len(tensors[0]) > self.clips:
                raise torch.OutOfMemoryError("CUDA out of memory")

        # behind batch norm: its statistics have been taken, in backward the classifier's gradients too
        module.register_full_backward_hook(check) if self.backward else module.register_forward_hook(check)


def states(ours: Worker) -> list[torch.Tensor]:
    return [*ours.module.state_dict().values(), *(p.grad for p in ours.module.parameters())]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("room", "at_once"), [(9, 8), (5, 4), (4, 4), (3, 2), (1, 1)])
def test_a_step_that_does_not_fit_is_done_anew_with_half_as_many_groups(
    room: int, at_once: int, backward: bool, tmp_path: Path
) -> None:
    """With the same result in float64, and from then on without a failure; a restart knows it too."""
    train, shape, batch = TrainSection(precision="float64"), BatchShape(8, 2, 6, 6), block(8)
    whole = worker(train)
    sums = whole.step(batch, shape, 8, torch.arange(8), torch.optim.SGD(whole.module.parameters(), lr=0.1))
    ours, cramped = worker(train), Cramped(room, backward)
    ours.memory = GroupsAtOnce(tmp_path / "run" / "found.json", "device")
    cramped.put_on(ours.module[2])
    optimizer = torch.optim.SGD(ours.module.parameters(), lr=0.1)
    torch.testing.assert_close(ours.step(batch, shape, 8, torch.arange(8), optimizer), sums, rtol=1e-12, atol=0)
    for one, other in zip(states(ours), states(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    assert cramped.seen[-8 // at_once :] == [at_once] * (8 // at_once)
    cramped.seen.clear()
    ours.step(batch, shape, 8, torch.arange(8), optimizer)
    assert cramped.seen == [at_once] * (8 // at_once)
    found = GroupsAtOnce(tmp_path / "run" / "found.json", "device").get(shape, 8, 1)
    assert found == (None if at_once == 8 else at_once)
    assert GroupsAtOnce(tmp_path / "run" / "found.json", "another device").get(shape, 8, 1) is None


def test_a_group_that_does_not_fit_alone_is_an_error() -> None:
    ours = worker(TrainSection(precision="float64"))
    Cramped(3, False).put_on(ours.module[2])
    optimizer = torch.optim.SGD(ours.module.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match=r"plan\.bn_group = 4: clips of 2x6x6 do not fit .* give a smaller one"):
        ours.step(block(8), BatchShape(8, 2, 6, 6), 2, torch.arange(8), optimizer)
    ours._tries_memory, ours.memory = True, GroupsAtOnce()
    with pytest.raises(TrainingError, match=r"plan\.bn_group = 4"):
        ours.warm_up(BatchShape(8, 2, 6, 6), 2)


@pytest.mark.parametrize("backward", [False, True])
def test_what_fits_is_found_before_a_phase_and_nothing_else_is_changed(backward: bool, tmp_path: Path) -> None:
    ours, cramped = worker(TrainSection(precision="float64", mixup=0.5)), Cramped(6, backward)
    ours.memory = GroupsAtOnce(tmp_path / "found.json", "device")
    ours._tries_memory = True
    cramped.put_on(ours.module[2])
    before = {name: value.clone() for name, value in ours.module.state_dict().items()}
    assert ours.warm_up(BatchShape(22, 2, 6, 6), 11)
    assert ours.memory.get(BatchShape(22, 2, 6, 6), 11, 1) == 3
    assert all(torch.equal(value, before[name]) for name, value in ours.module.state_dict().items())
    assert all(p.grad is None for p in ours.module.parameters())
    assert [len(part.groups.sizes) for part in ours.micro_batches(BatchShape(22, 2, 6, 6), 11)] == [3, 3, 3, 2]
    again, cramped = worker(TrainSection(precision="float64")), Cramped(6, False)
    again._tries_memory, again.memory = True, GroupsAtOnce(tmp_path / "found.json", "device")
    cramped.put_on(again.module[2])
    assert again.warm_up(BatchShape(22, 2, 6, 6), 11)
    assert cramped.seen == [6, 6, 6, 4]  # kernels of each shape are found before the first step
    assert not worker(TrainSection()).warm_up(BatchShape(22, 2, 6, 6), 11)  # a CPU


def test_a_trial_leaves_room_for_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments and the copies of a checkpoint, by hand: 4 x 3 x 27 + 4 + 2 x 4 + 4 x 3 + 3 weights and 9 numbers of running statistics in float64."""
    weights, running = 8 * 351, 8 * 9
    for train, want in (
        (TrainSection(), 3 * weights + running),
        (TrainSection(optimizer="adamw", ema=0.9), 6 * weights + 2 * running),
    ):
        assert bytes_to_come(network(), train) == want
    ours = worker(TrainSection(precision="float64"))
    monkeypatch.setattr(step_module, "bytes_to_come", lambda *_: 1 << 60)
    assert not ours.warm_up(BatchShape(8, 2, 6, 6), 4)
    ours._tries_memory = True
    with pytest.raises(RuntimeError, match=r"allocate"):
        ours.warm_up(BatchShape(8, 2, 6, 6), 4)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_is_full(error: Exception, full: bool) -> None:
    assert out_of_memory(error) is full


def test_a_library_that_finds_no_memory_is_met_with_fewer_groups() -> None:
    """As torch's own allocator is; other errors end the step, and a trial."""
    for said, ends in (("FIND was unable to find an engine to execute this computation", False), ("no kernel", True)):
        ours = worker(TrainSection(precision="float64"))

        def check(layer: nn.Module, _: object, output: torch.Tensor, said: str = said) -> None:
            if len(output) > 4:
                raise RuntimeError(said)

        ours.module[2].register_forward_hook(check)
        with pytest.raises(RuntimeError, match="no kernel") if ends else contextlib.nullcontext():
            ours.step(block(8), BatchShape(8, 2, 6, 6), 8, torch.arange(8), torch.optim.SGD(ours.module.parameters()))
        assert ours.memory.get(BatchShape(8, 2, 6, 6), 8, 1) == (None if ends else 4)
        ours._tries_memory = True
        with pytest.raises(RuntimeError, match="no kernel") if ends else contextlib.nullcontext():
            ours.warm_up(BatchShape(9, 2, 6, 6), 9)
        assert ours.memory.get(BatchShape(9, 2, 6, 6), 9, 1) == (None if ends else 4)


def test_a_rank_of_fewer_groups_does_not_cut_those_of_others() -> None:
    """8 groups on 3 ranks, 2 + 3 + 3: where all fit, 3 are computed at once."""
    ours = worker(TrainSection(precision="float64"), rank=0, world_size=3)
    offered: list[int] = []
    ours._least = lambda number: offered.append(number) or number  # type: ignore[assignment,method-assign]
    ours._tries_memory = True
    assert len(share_of(0, 3, 8, 8).groups) == 2
    assert ours.warm_up(BatchShape(8, 2, 6, 6), 8)
    assert offered == [0, 3]


def test_the_table_is_of_all_kinds_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed on other GPUs has another table, the same one on every rank."""
    names = ["NVIDIA H100", "NVIDIA A100", "NVIDIA H100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda found, _: found.__setitem__(slice(None), names))
    keys = {memory_key(Run(), torch.device("cuda", rank), 3) for rank in range(3)}
    assert len(keys) == 1 and keys.pop().startswith("NVIDIA A100 + NVIDIA H100, model ")
    assert memory_key(Run(), torch.device("cuda", 0), 1).startswith("NVIDIA H100, model ")
    assert memory_key(Run(), torch.device("cpu"), 3).startswith("cpu, model ")


@given(most=st.integers(1, 200), room=st.integers(0, 250))
def test_the_largest_number_that_fits(most: int, room: int) -> None:
    tried: list[int] = []
    assert largest_that_fits(lambda count: not tried.append(count) and count <= room, most) == min(most, room)
    assert len(tried) <= 9 and len(set(tried)) == len(tried)


@pytest.mark.parametrize("content", ["", "[]", '{"device": 3}', '{"device": {"8x2x6x6, 8 BN groups, 1 workers": "x"}}'])
def test_a_damaged_table_of_what_fits_is_made_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "found.json").write_text(content)
    memory = GroupsAtOnce(tmp_path / "found.json", "device")
    assert memory.get(BatchShape(8, 2, 6, 6), 8, 1) is None
    memory.put(BatchShape(8, 2, 6, 6), 8, 1, 2)
    assert GroupsAtOnce(tmp_path / "found.json", "device").get(BatchShape(8, 2, 6, 6), 8, 1) == 2
