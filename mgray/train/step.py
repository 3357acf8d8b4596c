"""One step of training: a rank's share of a global batch, forward, backward and update.

Shape suffixes: N clips, T frames, H height, W width, C colours.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgray.config import DataSection, TrainSection
from mgray.data.source import Block
from mgray.errors import TrainingError
from mgray.model.dropout import set_clip_keys
from mgray.model.norm import BnGroups, commit_running_stats, grouped_norms, set_groups
from mgray.model.upload import uploaded
from mgray.plan import BatchShape, ClipShape, Share, share_of
from mgray.train.augment import augmented
from mgray.train.compile import compile_model, set_kernels
from mgray.train.memory import GroupsAtOnce, bytes_to_come, largest_that_fits, out_of_memory
from mgray.train.mix import Targets, mix_groups
from mgray.train.optimizer import match_strides
from mgray.train.session import Session, unwrapped


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some whole BN groups of a rank's share: offsets into the share, and how its clips fall into groups."""

    clips: range
    groups: BnGroups
    before: int = 0
    """Clips of its first group that earlier ranks hold."""


class Worker:
    """A model on one rank: moves blocks to the device and computes with them."""

    def __init__(
        self,
        model: nn.Module,
        session: Session,
        data: DataSection,
        train: TrainSection,
        memory: GroupsAtOnce | None = None,
        base: ClipShape | None = None,
    ) -> None:
        self.model = model
        self.module = unwrapped(model)
        self.memory = GroupsAtOnce() if memory is None else memory
        self._base = base
        """The finest grid, which RandAugment has its full strength on; None has it on all."""
        self._session = session
        self._sync_groups: dict[tuple[int, int], dist.ProcessGroup | None] = {}
        self._train = train
        self._dtype = torch.float64 if train.precision == "float64" else torch.float32
        cuda = session.device.type == "cuda"
        self._uploads = torch.cuda.Stream(session.device) if cuda else None  # type: ignore[no-untyped-call]
        self._tries_memory = cuda and not train.micro_groups
        self._norms = list(grouped_norms(self.module))
        self._reducing = False
        """Gradients are on their way to the other ranks, so that this step can no longer be done anew."""
        self._scale_C = 1.0 / (torch.tensor(data.std, dtype=self._dtype, device=session.device) * 255.0)
        self._shift_C = -torch.tensor(data.mean, dtype=self._dtype, device=session.device) * 255.0 * self._scale_C
        if train.compile:
            self.module.register_forward_pre_hook(self._normalised)
            compile_model(self.module)
        if cuda:
            set_kernels(train)

    def clips(self, block: Block, part: range | None = None) -> Tensor:
        """A block's clips on the device, normalised: [N, C, T, H, W]."""
        return self._floats(self._bytes(block, part))

    def _floats(self, clips_NTHWC: Tensor) -> Tensor:
        # whole picture rows at once: broadcasting over the three colours alone costs 20 times more on a CPU
        width = clips_NTHWC.shape[3]
        rows = clips_NTHWC.view(-1, 3 * width).to(self._dtype)
        rows.mul_(self._scale_C.repeat(width)).add_(self._shift_C.repeat(width))
        layout = torch.channels_last_3d if self._train.channels_last else torch.contiguous_format
        return rows.view(clips_NTHWC.shape).permute(0, 4, 1, 2, 3).contiguous(memory_format=layout)

    def _bytes(self, block: Block, part: range | None) -> Tensor:
        """A block's clips on the device: uint8 [N, T, H, W, C]."""
        return self._uploaded(_tensor(block.clips_NTHWC if part is None else block.clips_NTHWC[part.start : part.stop]))

    def _normalised(self, module: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
        """A hook before a compiled model: bytes [N, T, H, W, C] become clips [N, C, T, H, W] within its graph."""
        if inputs[0].dtype != torch.uint8:
            return None
        clips_NTHWC = inputs[0].to(self._dtype) * self._scale_C + self._shift_C
        clips_NCTHW = clips_NTHWC.permute(0, 4, 1, 2, 3)
        return clips_NCTHW if self._train.channels_last else clips_NCTHW.contiguous()

    def _uploaded(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; to a GPU from pinned memory, on a stream beside that of the step before it."""
        if self._uploads is None:
            return tensor.to(self._session.device)
        computing = torch.cuda.current_stream(self._session.device)
        with torch.cuda.stream(self._uploads):
            moved = tensor.pin_memory().to(self._session.device, non_blocking=True)
        computing.wait_stream(self._uploads)
        moved.record_stream(computing)
        return moved

    def _logits(self, model: nn.Module, clips_NCTHW: Tensor, *, compiled: bool = False) -> Tensor:
        """Logits of clips, or of bytes where they go through a compiled graph."""
        # on CPUs torch 2.14 reads uninitialised memory in the gradient of temporal convolutions in bfloat16
        half = self._train.precision == "bfloat16" and self._session.device.type != "cpu"
        with (
            torch.autocast(self._session.device.type, torch.bfloat16, enabled=half),
            torch.compiler.set_stance("default" if compiled else "force_eager"),
        ):
            logits: Tensor = model(clips_NCTHW)
        if compiled:
            for norm in self._norms:
                norm.take_compiled_stats()
        return logits.to(self._dtype)

    def step(
        self, block: Block | None, shape: BatchShape, bn_groups: int, keys_N: Tensor, optimizer: torch.optim.Optimizer
    ) -> Tensor:
        """Train on one global batch; returns this rank's [sum of losses, right answers] in float64 on the device.

        The gradient is that of the mean loss over the *global* batch, however unevenly its clips are shared out.
        """
        while (sums := self._tried(block, shape, bn_groups, keys_N)) is None:
            self._forget()
            _release_memory(self._session.device)
        if self._train.clip_grad:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._train.clip_grad)
        match_strides(optimizer)
        optimizer.step()
        self.commit()
        return sums

    def _tried(self, block: Block | None, shape: BatchShape, bn_groups: int, keys_N: Tensor) -> Tensor | None:
        """`_accumulate`, or None where it has run out of memory and can be done anew with fewer BN groups at once."""
        try:
            return self._accumulate(block, shape, bn_groups, keys_N)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._compute_fewer(block, shape, bn_groups, error)
            return None  # the failed try's tensors go with its exception

    def _accumulate(self, block: Block | None, shape: BatchShape, bn_groups: int, keys_N: Tensor) -> Tensor:
        """Forward and backward passes of a step's micro-batches; gradients are reduced over the ranks in the last."""
        self._forget()
        sums = torch.zeros(2, dtype=torch.float64, device=self._session.device)
        parts = self.micro_batches(shape, bn_groups)
        # DDP averages over ranks
        weight = self._session.world_size / shape.clips
        if block is None:
            (self._idle(shape).sum() * 0.0).backward()  # type: ignore[no-untyped-call]
        for number, part in enumerate(parts):
            assert block is not None
            last = number == len(parts) - 1
            with self._gradients_stay_local(not last):
                set_groups(self.module, part.groups)
                keys = keys_N[part.clips.start : part.clips.stop]
                set_clip_keys(self.module, uploaded(keys, self._session.device))
                clips, targets = self._batch(block, part)
                logits = self._logits(self.model, clips, compiled=self._is_compiled(part))
                self._reducing = last and self._session.world_size > 1
                loss = targets.loss(logits, self._train.label_smoothing)
                (loss * weight).backward()  # type: ignore[no-untyped-call]
                sums[0] += loss.detach()
                sums[1] += targets.num_right(logits)
        self._reducing = False
        return sums

    def _forget(self) -> None:
        """Drop gradients and batch-norm statistics: those of the step before, or of a try that failed."""
        self.module.zero_grad(set_to_none=True)
        for norm in self._norms:
            norm.pending, norm.compiled_stats = (), None

    def _compute_fewer(self, block: Block | None, shape: BatchShape, bn_groups: int, error: RuntimeError) -> None:
        """Halve the BN groups that are computed at once for a batch, from now on.

        Raises:
            TrainingError: one group alone does not fit.
            RuntimeError: `error`, where other ranks have this rank's gradients in part already; an attempt from the last checkpoint
                computes fewer groups.
        """
        share = self._share(shape, bn_groups)
        at_once = self._groups_at_once(shape, bn_groups)
        if block is None or at_once == 1:
            raise _does_not_fit(shape, max(map(len, share.groups), default=1)) from error
        self.memory.put(shape, bn_groups, self._session.world_size, at_once // 2)
        if self._reducing:
            raise error

    def warm_up(self, shape: BatchShape, bn_groups: int) -> bool:
        """Find how many BN groups of a batch fit in memory, and its kernels or its graph, before its phase begins.

        Blank clips go forward and back, and nothing of them remains. Every rank has to take part, and all take the smallest number.

        Returns:
            False where there was nothing to do.

        Raises:
            TrainingError: one group alone does not fit.
        """
        session, share = self._session, self._share(shape, bn_groups)
        # a group that spans ranks cannot be cut further, and its collectives are not compiled
        if min(bn_groups, shape.clips) < session.world_size:
            return False
        if not self._tries_memory:
            if self._train.compile or self._uploads is not None:
                return self._fits(shape, bn_groups, self._groups_at_once(shape, bn_groups))
            return False
        # what one rank does not know, all try: a table may have reached just some of them
        known = self._least(self.memory.get(shape, bn_groups, session.world_size) or 0)
        groups = len(share.groups)
        most = min(groups, known or groups)
        tried = largest_that_fits(lambda at_once: self._fits(shape, bn_groups, at_once), most)
        # a rank of fewer groups than others says nothing of more
        most_of_all = -(-min(bn_groups, shape.clips) // session.world_size)
        found = self._least(tried if tried < most else known or most_of_all)
        if not found:
            raise _does_not_fit(shape, max(map(len, share.groups)))
        self.memory.put(shape, bn_groups, session.world_size, found, store=session.rank == 0 and found != known)
        if found < tried:
            self._fits(shape, bn_groups, found)
        return True

    def _least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        if self._session.world_size == 1:
            return number
        found = torch.tensor(number, device=self._session.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def _is_compiled(self, part: MicroBatch) -> bool:
        return self._train.compile and part.groups.process_group is None

    def _fits(self, shape: BatchShape, bn_groups: int, at_once: int) -> bool:
        """Whether this rank's share of a batch can be computed with `at_once` of its BN groups at once."""
        try:
            self._compute_blank(shape, self._share(shape, bn_groups), at_once)
            return True
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            self._forget()
            _release_memory(self._session.device)

    def _compute_blank(self, shape: BatchShape, share: Share, at_once: int) -> None:
        """Blank clips forward and back, beside as much memory as the run takes later."""
        count = len(share.clips)
        blank = np.zeros(count, np.int64)
        block = Block(
            0, 0, np.zeros((count, shape.frames, shape.height, shape.width, 3), np.uint8), blank, blank, blank
        )
        to_come = bytes_to_come(self.module, self._train) if self._tries_memory else 0
        held = torch.empty(to_come, dtype=torch.uint8, device=self._session.device)
        for part in self._parts(share, at_once):
            set_groups(self.module, part.groups)
            set_clip_keys(self.module, torch.zeros(len(part.clips), dtype=torch.int64, device=self._session.device))
            clips, targets = self._batch(block, part)
            # not by way of DDP: other ranks may be at another number
            logits = self._logits(self.module, clips, compiled=self._is_compiled(part))
            targets.loss(logits, self._train.label_smoothing).backward()  # type: ignore[no-untyped-call]
        del held

    def _batch(self, block: Block, part: MicroBatch) -> tuple[Tensor, Targets]:
        """The clips of a part, mixed where the run mixes, or its bytes for a compiled graph; and what their logits are compared with."""
        mixing = self._train.mixup or self._train.cutmix
        bytes_NTHWC = self._bytes(block, part.clips)
        if self._train.randaugment:
            places = block.positions_N[part.clips.start : part.clips.stop].tolist()
            bytes_NTHWC = augmented(bytes_NTHWC, places, self._train.seed, self._magnitude(bytes_NTHWC))
        clips = bytes_NTHWC if self._is_compiled(part) and not mixing else self._floats(bytes_NTHWC)
        labels = uploaded(_tensor(block.labels_N[part.clips.start : part.clips.stop]), self._session.device)
        if not mixing:
            return clips, Targets(labels)
        firsts = itertools.accumulate(part.groups.sizes[:-1], initial=part.clips.start)
        positions = [int(block.positions_N[first]) for first in firsts]
        positions[0] -= part.before
        return mix_groups(clips, labels, part.groups, positions, self._train)

    def _magnitude(self, clips_NTHWC: Tensor) -> float:
        """RandAugment's strength on these clips' grid."""
        if self._base is None:
            return float(self._train.randaugment)
        return float(
            self._train.randaugment
            * (clips_NTHWC[0, ..., 0].numel() / self._base.voxels) ** self._train.randaugment_growth
        )

    def observe(self, block: Block | None, shape: BatchShape, bn_groups: int) -> None:
        """Let a batch pass only for its batch-norm statistics."""
        # every rank has to meet in the making of process groups, one without clips too
        parts = self.micro_batches(shape, bn_groups)
        with torch.no_grad():
            for part in parts:
                assert block is not None
                set_groups(self.module, part.groups)
                set_clip_keys(self.module, torch.zeros(len(part.clips), dtype=torch.int64, device=self._session.device))
                self._logits(self.module, self.clips(block, part.clips))
        self.commit()

    def commit(self) -> None:
        """Update running statistics with those of the global batch, the same on every rank."""
        commit_running_stats(grouped_norms(self.module), reduce=self._session.world_size > 1)

    def micro_batches(self, shape: BatchShape, bn_groups: int) -> list[MicroBatch]:
        """This rank's clips of a step, cut into parts of whole BN groups that are computed at once."""
        share = self._share(shape, bn_groups)
        sync = self._sync_group(shape.clips, bn_groups)
        if not share.clips:
            return []
        if sync is not None:
            first = share_of(share.ranks.start, self._session.world_size, shape.clips, bn_groups)
            before = share.clips.start - first.clips.start
            return [MicroBatch(range(len(share.clips)), BnGroups((len(share.clips),), sync), before)]
        return self._parts(share, self._groups_at_once(shape, bn_groups))

    @staticmethod
    def _parts(share: Share, at_once: int) -> list[MicroBatch]:
        """A share of whole groups, cut into parts of up to `at_once` of them."""
        parts = []
        for first in range(0, len(share.groups), at_once):
            groups = share.groups[first : first + at_once]
            clips = range(groups[0].start - share.clips.start, groups[-1].stop - share.clips.start)
            parts.append(MicroBatch(clips, BnGroups(tuple(len(group) for group in groups))))
        return parts

    def _share(self, shape: BatchShape, bn_groups: int) -> Share:
        return share_of(self._session.rank, self._session.world_size, shape.clips, bn_groups)

    def _groups_at_once(self, shape: BatchShape, bn_groups: int) -> int:
        most = max(1, len(self._share(shape, bn_groups).groups))
        found = self.memory.get(shape, bn_groups, self._session.world_size)
        return min(most, self._train.micro_groups or most, found or most)

    def _sync_group(self, clips: int, bn_groups: int) -> dist.ProcessGroup | None:
        """The process group that shares this rank's BN group, where one spans several ranks; sought once for each size of batch."""
        world_size = self._session.world_size
        if min(bn_groups, clips) >= world_size:
            return None
        if (clips, bn_groups) in self._sync_groups:
            return self._sync_groups[clips, bn_groups]
        mine = None
        shares = [share_of(rank, world_size, clips, bn_groups) for rank in range(world_size)]
        spans = dict.fromkeys(share.ranks for share in shares)
        for span in spans:
            # a rank without clips has no part in the statistics
            active = [rank for rank in span if shares[rank].clips]
            if len(active) > 1:
                group = self._session.subgroup(tuple(active))
                if self._session.rank in active:
                    mine = group
        self._sync_groups[clips, bn_groups] = mine
        return mine

    @contextlib.contextmanager
    def _gradients_stay_local(self, local: bool) -> Iterator[None]:
        if local and isinstance(self.model, DistributedDataParallel):
            with self.model.no_sync():
                yield
        else:
            yield

    def _idle(self, shape: BatchShape) -> Tensor:
        """Logits of a clip that counts for nothing: DDP needs a backward pass of every rank."""
        self.module.eval()
        clip = torch.zeros(
            1, 3, shape.frames, shape.height, shape.width, dtype=self._dtype, device=self._session.device
        )
        logits = self._logits(self.model, clip)
        self.module.train()
        return logits

    def predict(self, block: Block) -> Tensor:
        """Logits [N, classes] of a validation block; no other rank takes part."""
        return self._logits(self.module, self.clips(block))


def _release_memory(device: torch.device) -> None:
    """Give cached memory back, so that what is allocated next need not fit into the pieces of what was there."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _does_not_fit(shape: BatchShape, clips: int) -> TrainingError:
    return TrainingError(
        "plan.bn_group", clips, f"clips of {shape.frames}x{shape.height}x{shape.width} do not fit in this device's memory at once",
        "give a smaller one, --train.precision bfloat16, or more --scale.workers than a step has BN groups",
    )  # fmt: skip


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares memory with a read-only array (blocks are views of Ray's object store, and never written to)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
