"""PySlowFast's video ResNets in plain functional torch, straight from a state dict with the published names.

Written from the published definition, without a module of mgray: what `mgray convert` is tested against. `centred` frames are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

STEM = {"slow": (1,), "i3d": (5,), "i3d_nln": (5,), "slowfast": (1, 5)}
KERNELS = {
    "slow": ([[1], [1], [3], [3]],),
    "i3d": ([[3], [3, 1], [3, 1], [1, 3]],),
    "i3d_nln": ([[3], [3, 1], [3, 1], [1, 3]],),
    "slowfast": ([[1], [1], [3], [3]], [[3], [3], [3], [3]]),
}
"""Frames that the first convolution of a block spans, in turn, for each pathway and stage."""
NONLOCAL = {3: (1, 3), 4: (1, 3, 5)}


def shapes(
    arch: str,
    *,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    beta_inv: int = 8,
    fusion_kernel: int = 7,
    temporal_blocks: int = 99,
    classes: int = 400,
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a network of bottlenecks."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{leaf}"] = (channels,)
        found[f"{name}.num_batches_tracked"] = ()

    widths = [width, width // beta_inv] if arch == "slowfast" else [width]

    def fuse(stage: int, channels: int) -> None:
        if arch == "slowfast":
            found[f"s{stage}_fuse.conv_f2s.weight"] = (2 * channels, channels, fusion_kernel, 1, 1)
            norm(f"s{stage}_fuse.bn", 2 * channels)

    for path, (base, frames) in enumerate(zip(widths, STEM[arch], strict=True)):
        found[f"s1.pathway{path}_stem.conv.weight"] = (base, 3, frames, 7, 7)
        norm(f"s1.pathway{path}_stem.bn", base)
    fuse(1, widths[-1])
    outputs = list(widths)
    for stage, count in zip((2, 3, 4, 5), blocks, strict=True):
        fused = 2 * outputs[-1] if arch == "slowfast" else 0
        for path, base in enumerate(widths):
            inputs = outputs[path] + (fused if path == 0 else 0)
            inner = base * 2 ** (stage - 2)
            kernels = KERNELS[arch][path][stage - 2]
            for block in range(count):
                name = f"s{stage}.pathway{path}_res{block}"
                span = kernels[block % len(kernels)] if block < temporal_blocks else 1
                if block == 0:
                    found[f"{name}.branch1.weight"] = (4 * inner, inputs, 1, 1, 1)
                    norm(f"{name}.branch1_bn", 4 * inner)
                for letter, shape in (
                    ("a", (inner, inputs if block == 0 else 4 * inner, span, 1, 1)),
                    ("b", (inner, inner, 1, 3, 3)),
                    ("c", (4 * inner, inner, 1, 1, 1)),
                ):
                    found[f"{name}.branch2.{letter}.weight"] = shape
                    norm(f"{name}.branch2.{letter}_bn", shape[0])
                if arch == "i3d_nln" and block in NONLOCAL.get(stage, ()):
                    extra = f"s{stage}.pathway0_nonlocal{block}"
                    for conv, out, into in (("theta", 2, 4), ("phi", 2, 4), ("g", 2, 4), ("out", 4, 2)):
                        found[f"{extra}.conv_{conv}.weight"] = (out * inner, into * inner, 1, 1, 1)
                        found[f"{extra}.conv_{conv}.bias"] = (out * inner,)
                    norm(f"{extra}.norm", 4 * inner)
            outputs[path] = 4 * inner
        if stage < 5:
            fuse(stage, outputs[-1])
    found["head.projection.weight"] = (classes, sum(outputs))
    found["head.projection.bias"] = (classes,)
    return found


def random_state(wanted: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Tensors of the shapes wanted, float32, such that features keep their size."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in wanted.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("running_var"):
            value = value.square() * 0.3 + 0.5
        elif len(shape) > 1:
            value = value / (value[0].numel() ** 0.5)
        elif name.endswith("weight"):
            value = 1.0 + 0.2 * value
        else:
            value = 0.2 * value
        state[name] = value
    return state


def with_sub_norms(state: State, splits: int = 2) -> State:
    """The same network as it is in memory when it trains with sub-batch norm: aggregated statistics under `bn`, others under `split_bn`."""
    sub: State = {}
    for name, value in state.items():
        norm, _, leaf = name.rpartition(".")
        if leaf.startswith("running_") or leaf == "num_batches_tracked":
            sub[f"{norm}.bn.{leaf}"] = value
            sub[f"{norm}.split_bn.{leaf}"] = value.repeat(splits) + 5.0 if value.dim() else value
        else:
            sub[name] = value
    return sub


def forward(state: State, clips: Tensor, arch: str, *, alpha: int = 4, centred: bool = False) -> Tensor:
    """Logits [N, classes] of clips [N, 3, T, H, W] in evaluation, the head pooling over all positions.

    `centred` has the slow pathway's frames in the middle of the clip, and lateral connections about just these.
    """
    state = {name: value.to(clips.dtype) for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(
            x, state[f"{name}.running_mean"], state[f"{name}.running_var"], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5
        )  # fmt: skip

    def conv(x: Tensor, name: str, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        weight = state[f"{name}.weight"]
        padding = tuple(size // 2 for size in weight.shape[2:])
        return F.conv3d(x, weight, state.get(f"{name}.bias"), stride, padding)

    def residual(x: Tensor, name: str, stride: int) -> Tensor:
        steps = (1, stride, stride)
        y = F.relu(norm(conv(x, f"{name}.branch2.a"), f"{name}.branch2.a_bn"))
        y = F.relu(norm(conv(y, f"{name}.branch2.b", steps), f"{name}.branch2.b_bn"))
        y = norm(conv(y, f"{name}.branch2.c"), f"{name}.branch2.c_bn")
        if f"{name}.branch1.weight" in state:
            x = norm(conv(x, f"{name}.branch1", steps), f"{name}.branch1_bn")
        return F.relu(x + y)

    def attend(x: Tensor, name: str) -> Tensor:
        pooled = F.max_pool3d(x, (1, 2, 2))
        theta, phi, g = (
            conv(y, f"{name}.conv_{which}").flatten(2) for y, which in ((x, "theta"), (pooled, "phi"), (pooled, "g"))
        )
        weights = torch.softmax(torch.einsum("nct,ncp->ntp", theta, phi) * theta.shape[1] ** -0.5, dim=2)
        mean = torch.einsum("ntp,ncp->nct", weights, g).reshape(x.shape[0], -1, *x.shape[2:])
        return x + norm(conv(mean, f"{name}.conv_out"), f"{name}.norm")

    def fuse(paths: list[Tensor], stage: int) -> list[Tensor]:
        if len(paths) == 1:
            return paths
        name = f"s{stage}_fuse.conv_f2s"
        wide = conv(paths[1], name)[:, :, middle] if centred else conv(paths[1], name, (alpha, 1, 1))
        extra = F.relu(norm(wide, f"s{stage}_fuse.bn"))
        return [torch.cat([paths[0], extra], 1), paths[1]]

    paths = [clips]
    frames = clips.shape[2]
    middle = [(frames - 1) % alpha // 2 + alpha * number for number in range(-(-frames // alpha))]
    if arch == "slowfast" and centred:
        paths = [clips[:, :, middle], clips]
    elif arch == "slowfast":
        slow = torch.linspace(0, clips.shape[2] - 1, clips.shape[2] // alpha).long()
        paths = [clips.index_select(2, slow), clips]
    for path, x in enumerate(paths):
        name = f"s1.pathway{path}_stem"
        paths[path] = F.max_pool3d(F.relu(norm(conv(x, f"{name}.conv", (1, 2, 2)), f"{name}.bn")), (1, 3, 3), (1, 2, 2), (0, 1, 1))  # fmt: skip
    paths = fuse(paths, 1)
    for stage in (2, 3, 4, 5):
        for path, x in enumerate(paths):
            block = 0
            while f"s{stage}.pathway{path}_res{block}.branch2.a.weight" in state:
                x = residual(x, f"s{stage}.pathway{path}_res{block}", 2 if stage > 2 and block == 0 else 1)
                if f"s{stage}.pathway{path}_nonlocal{block}.norm.weight" in state:
                    x = attend(x, f"s{stage}.pathway{path}_nonlocal{block}")
                block += 1
            paths[path] = x
        if stage == 2 and arch.startswith("i3d"):
            paths = [F.max_pool3d(x, (2, 1, 1)) for x in paths]
        if stage < 5:
            paths = fuse(paths, stage)
    pooled = torch.cat([F.adaptive_avg_pool3d(x, 1).flatten(1) for x in paths], 1)
    return F.linear(pooled, state["head.projection.weight"], state["head.projection.bias"])
