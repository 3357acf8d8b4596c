"""torchvision's networks: torchvision's own numbers at their shape, positions that follow any other, keyed blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights
from torchvision.models import video as torchvision_video
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d

from mgray.config import DataSection, ModelSection, TrainSection
from mgray.data.source import Block
from mgray.model import build_model
from mgray.model.dropout import ClipStochasticDepth, convert_dropout, set_clip_keys
from mgray.model.norm import defer_running_stats
from mgray.model.positions import AnyShapeWindowAttention, accept_any_shape, resized
from mgray.plan import BatchShape
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from tests.support.networks import undrawn

NAMES = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t")
CLIP = (4, 32, 32)
"""Frames, height, width that the small networks are built for."""


def small_mvit(*, v2: bool, stochastic_depth: float = 0.0, classes: int = 5) -> MViT:
    """torchvision's own class with two blocks, the second of which halves height and width."""
    blocks = [
        MSBlockConfig(1, 8, 16 - 8 * v2, [3, 3, 3] if v2 else [], [3, 3, 3], [1, 1, 1] if v2 else [], [1, 2, 2]),
        MSBlockConfig(2, 16 - 8 * v2, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
    ]
    return MViT(
        CLIP[1:], CLIP[0], blocks, residual_pool=v2, residual_with_cls_embed=False, rel_pos_embed=v2, proj_after_attn=v2,
        dropout=0.0, stochastic_depth_prob=stochastic_depth, num_classes=classes,
    )  # fmt: skip


def small_swin(stochastic_depth: float = 0.0, classes: int = 5) -> SwinTransformer3d:
    """torchvision's own class; the second stage has 2 x 4 x 4 tokens of `CLIP`, a window."""
    return SwinTransformer3d(
        [2, 4, 4], 8, [1, 2], [1, 2], [2, 4, 4], stochastic_depth_prob=stochastic_depth, num_classes=classes
    )


SMALL: dict[str, Callable[..., nn.Module]] = {
    "mvit_v1": partial(small_mvit, v2=False),
    "mvit_v2": partial(small_mvit, v2=True),
    "swin": small_swin,
}
POSITIONS = ("spatial_pos", "temporal_pos", "class_pos", "rel_pos", "relative_position_bias_table")


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_are_torchvision_s(name: str) -> None:
    """Keys, shapes and their order, through grouping, keyed dropout and all."""
    with torch.device("meta"):
        theirs = getattr(torchvision_video, name)(weights=None)
        ours = convert_dropout(build_model(ModelSection(name=name), 400))
    described = [
        [(key, value.shape, value.dtype) for key, value in model.state_dict().items()] for model in (theirs, ours)
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_multiply_adds_are_those_published(name: str) -> None:
    """torchvision's documentation: 400 classes, clips of 16 frames of 224 pixels (112 for the residual networks)."""
    meta = get_model_weights(name).DEFAULT.meta
    crop = 112 if name.endswith("_18") else 224
    with torch.device("meta"):
        model = build_model(ModelSection(name=name), 400).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.empty(1, 3, 16, crop, crop))
    assert sum(parameter.numel() for parameter in model.parameters()) == meta["num_params"]
    assert counter.get_total_flops() / 2e9 == pytest.approx(meta["_ops"], abs=6e-4)


@pytest.mark.parametrize(("name", "clip"), [("s3d", (14, 224, 224)), ("swin3d_t", (2, 224, 224))])
def test_whole_networks_give_torchvision_s_logits(name: str, clip: tuple[int, int, int]) -> None:
    """S3D at the least shape that torchvision takes; MViT is compared by its small networks below, as it is slow."""
    torch.manual_seed(0)
    theirs = getattr(torchvision_video, name)(weights=None).eval()
    ours = undrawn(ModelSection(name=name, dropout=0.5), 400).eval()
    ours.load_state_dict(theirs.state_dict())
    clips = torch.randn(1, 3, *clip)
    with torch.inference_mode():
        torch.testing.assert_close(ours(clips), theirs(clips), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_equal_torchvision_s_with_gradients(name: str) -> None:
    torch.manual_seed(1)
    theirs = SMALL[name]().double()
    ours = accept_any_shape(SMALL[name]().double())
    ours.load_state_dict(theirs.state_dict())
    clips = torch.randn(3, 3, *CLIP, dtype=torch.float64)
    logits = [model(clips) for model in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-13)
    for output in logits:
        output.square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "clip", [(1, 1, 1), (2, 8, 8), (4, 48, 48), (5, 23, 41), (8, 32, 32), (8, 79, 112), (32, 64, 64)]
)
@pytest.mark.parametrize("name", SMALL)
def test_any_shape_trains_the_positions(name: str, clip: tuple[int, int, int]) -> None:
    torch.manual_seed(2)
    model = accept_any_shape(SMALL[name]())
    logits = model(torch.randn(2, 3, *clip))
    assert logits.shape == (2, 5) and logits.isfinite().all()
    logits.square().sum().backward()
    tables = {key: value for key, value in model.named_parameters() if any(part in key for part in POSITIONS)}
    # softmax is blind to a bias where there is but one token; MViTv2 has none for the class token, all that leaves its last block
    last = "blocks.1.attn.rel_pos"
    if min(clip) > 4:
        assert {key for key, table in tables.items() if table.grad.any()} == {k for k in tables if last not in k}


@pytest.mark.parametrize("clip", [(1, 1, 1), (2, 8, 8), (4, 48, 48), (9, 79, 112)])
@pytest.mark.parametrize("name", ["s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t"])
def test_whole_networks_take_small_and_odd_shapes(name: str, clip: tuple[int, int, int]) -> None:
    with torch.inference_mode():
        assert whole(name)(torch.zeros(2, 3, *clip)).shape == (2, 7)


@functools.cache
def whole(name: str) -> nn.Module:
    return undrawn(ModelSection(name=name), 7).eval()


def test_resizing_to_the_same_size_is_the_identity() -> None:
    line, plane = torch.randn(8, 3), torch.randn(5, 7, 3)
    assert resized(line, (8,)) is line and resized(plane, (5, 7)) is plane


def test_resized_tables_are_linear_between_the_centres_of_old_entries() -> None:
    """Against numpy's interpolation: entry i of n lies at (i + 1/2) / n of the clip, and the ends are held."""

    def centres(count: int) -> np.ndarray:
        return (np.arange(count) + 0.5) / count

    table = torch.randn(6, 4, 2, dtype=torch.float64)
    for size in ((3, 4), (12, 9), (1, 1), (5, 7)):
        rows = np.stack([np.interp(centres(size[0]), centres(6), column) for column in table.flatten(1).T.numpy()], 1)
        rows = rows.reshape(size[0], 4, 2)
        want = np.stack(
            [np.interp(centres(size[1]), centres(4), rows[y, :, c]) for y in range(size[0]) for c in range(2)]
        ).reshape(size[0], 2, size[1])
        np.testing.assert_allclose(resized(table, size).numpy(), want.transpose(0, 2, 1), rtol=0, atol=1e-12)
    line = torch.randn(6, 2, dtype=torch.float64)
    want = np.stack([np.interp(centres(4), centres(6), column) for column in line.T.numpy()], 1)
    np.testing.assert_allclose(resized(line, (4,)).numpy(), want, rtol=0, atol=1e-12)


def test_separate_encodings_are_resized_each_by_itself() -> None:
    torch.manual_seed(3)
    model = accept_any_shape(small_mvit(v2=False))
    encoding = model.pos_encoding
    thw = (4, 5, 3)
    got = encoding(torch.zeros(2, 60, 8), thw)
    frames = resized(encoding.temporal_pos, thw[:1])
    places = resized(encoding.spatial_pos.view(8, 8, 8), thw[1:])
    assert torch.equal(got[1, 0], encoding.class_token + encoding.class_pos)
    for t, y, x in ((0, 0, 0), (3, 4, 2), (1, 2, 1)):
        torch.testing.assert_close(got[0, 1 + (t * 5 + y) * 3 + x], frames[t] + places[y, x])


@pytest.mark.parametrize("window", [(2, 3, 4), (1, 3, 4), (2, 2, 4), (2, 3, 1), (1, 2, 2)])
def test_a_window_s_bias_is_that_of_the_offset_between_two_tokens(window: tuple[int, int, int]) -> None:
    """torchvision's agrees only where height and width are the full window's."""
    full, heads = (2, 3, 4), 3
    theirs = ShiftedWindowAttention3d(6, list(full), [0, 0, 0], heads)
    ours = ShiftedWindowAttention3d(6, list(full), [0, 0, 0], heads)
    ours.__class__ = AnyShapeWindowAttention
    ours.load_state_dict(theirs.state_dict())
    table = theirs.relative_position_bias_table.view(3, 5, 7, heads)
    tokens = list(np.ndindex(*window))
    got = ours.get_relative_position_bias(list(window))
    assert got.shape == (1, heads, len(tokens), len(tokens))
    for i, one in enumerate(tokens):
        for j, other in enumerate(tokens):
            offset = [a - b + size - 1 for a, b, size in zip(one, other, full, strict=True)]
            assert torch.equal(got[0, :, i, j], table[tuple(offset)])
    same = torch.equal(got, theirs.get_relative_position_bias(list(window)))
    assert same == (window[1:] == full[1:] or window[1:] == (3, 4))


def test_attention_is_the_same_wherever_a_small_clip_lies() -> None:
    """A clip of one window gives every token what dense attention with the offsets' bias gives it."""
    torch.manual_seed(4)
    layer = accept_any_shape(nn.ModuleList([ShiftedWindowAttention3d(6, [4, 4, 4], [2, 2, 2], 2)]))[0]
    x = torch.randn(2, 2, 3, 2, 6)
    tokens = x.flatten(1, 3)
    q, k, v = layer.qkv(tokens).view(2, 12, 3, 2, 3).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / 3**0.5 + layer.get_relative_position_bias([2, 3, 2])
    want = layer.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 12, 6)).view_as(x)
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_that_a_clip_skips_do_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(5)
    model = convert_dropout(accept_any_shape(SMALL[name](stochastic_depth=0.5))).double().train()
    clips, keys = torch.randn(6, 3, *CLIP, dtype=torch.float64), torch.tensor([0, 1, 5, -3, 2**62, 17])

    def logits(part: slice) -> Tensor:
        set_clip_keys(model, keys[part])
        return model(clips[part])

    whole = logits(slice(0, 6))
    for cut in range(1, 6):
        split = torch.cat([logits(slice(0, cut)), logits(slice(cut, 6))])
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)
    assert not torch.allclose(whole, model.eval()(clips))


def test_stochastic_depth_drops_about_p_and_each_call_anew() -> None:
    layer = ClipStochasticDepth(0.2, "row")
    layer.keys_N = torch.arange(4000)
    calls = [layer(torch.ones(4000, 2, 3)) for _ in range(3)]
    for output in calls:
        assert output.flatten(1).var(1).max() == 0.0
        assert output.unique().tolist() == pytest.approx([0.0, 1.25])
        assert float((output[:, 0, 0] > 0).float().mean()) == pytest.approx(0.8, abs=0.03)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        both = ((calls[one] > 0) & (calls[other] > 0))[:, 0, 0].float().mean()
        assert float(both) == pytest.approx(0.64, abs=0.03)
    layer.keys_N = torch.arange(4000)
    assert torch.equal(layer(torch.ones(4000, 2, 3)), calls[0])


def test_stochastic_depth_needs_keys_and_goes_by_rows() -> None:
    layer = ClipStochasticDepth(0.5, "row")
    with pytest.raises(ValueError, match="one key for each of 3 clips"):
        layer(torch.ones(3, 8))
    x = torch.ones(3, 8)
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match="mode batch"):
        convert_dropout(nn.Sequential(torchvision_video.mvit.StochasticDepth(0.1, "batch")))


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_two_shapes_train(name: str) -> None:
    """Groups of clips, grouped norms where there are norms, keyed dropout: all that a step does."""
    torch.manual_seed(6)
    model = convert_dropout(build_model(ModelSection(name=name), 3)).train()
    defer_running_stats(model)
    worker = Worker(model, LocalSession(Path("unused")), DataSection(), TrainSection())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for index, shape in enumerate((BatchShape(4, 2, 32, 32), BatchShape(2, 4, 48, 40))):
        pixels = torch.randint(256, (shape.clips, shape.frames, shape.height, shape.width, 3), dtype=torch.uint8)
        count = np.arange(shape.clips)
        block = Block(index, 0, pixels.numpy(), count % 3, count, count)
        sums = worker.step(block, shape, 2 - index, torch.arange(shape.clips), optimizer)
        assert sums.isfinite().all()
    still = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    # all that leaves the last block is the class token, which is neither pooled nor has relative positions
    blind = {f"blocks.15.attn.{part}" for part in ("pool_q.pool.weight", "rel_pos_h", "rel_pos_w", "rel_pos_t")}
    numbers = {key for key in before if key.endswith("relative_position_index")}
    assert still == (blind if name == "mvit_v2_s" else numbers)
