"""Weights of other programs: the same logits, every key accounted for."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mgray.config import ModelSection
from mgray.errors import CheckpointError, ConfigError
from mgray.model import build_model
from mgray.model.convert import PYSLOWFAST, Weights, convert_file, from_pyslowfast, inflate, read_weights, write_weights
from mgray.model.resnet3d import ResNet3d
from tests.support import pyslowfast
from tests.support.networks import undrawn
from tests.support.pyslowfast import State, random_state, shapes, with_sub_norms

ARCHES = ("slowfast", "slow", "i3d", "i3d_nln")


def small(arch: str, **fields: int) -> State:
    return random_state(shapes(arch, **{"width": 8, "beta_inv": 4, "classes": 5, **fields}))


def loaded(weights: Weights) -> nn.Module:
    model = undrawn(weights.section, weights.num_classes).double().eval()
    model.load_state_dict(weights.state)
    return model


@pytest.mark.parametrize("arch", ARCHES)
def test_our_keys_have_the_published_names_and_shapes(arch: str) -> None:
    with torch.device("meta"):
        state = build_model(ModelSection(name=arch), 400).state_dict()
    names = PYSLOWFAST.translate(state)
    assert {names[key]: tuple(value.shape) for key, value in state.items()} == shapes(arch)


def test_published_names_and_shapes() -> None:
    """Of PySlowFast's own SLOWFAST_8x8_R50 and I3D_NLN_8x8_R50."""
    fast, local = shapes("slowfast"), shapes("i3d_nln")
    for name, shape in (
        ("s1.pathway0_stem.conv.weight", (64, 3, 1, 7, 7)),
        ("s1.pathway1_stem.conv.weight", (8, 3, 5, 7, 7)),
        ("s1_fuse.conv_f2s.weight", (16, 8, 7, 1, 1)),
        ("s2.pathway0_res0.branch1.weight", (256, 80, 1, 1, 1)),
        ("s2.pathway0_res0.branch1_bn.running_var", (256,)),
        ("s2.pathway0_res0.branch2.a.weight", (64, 80, 1, 1, 1)),
        ("s4.pathway0_res0.branch2.a.weight", (256, 640, 3, 1, 1)),
        ("s5.pathway1_res2.branch2.c_bn.weight", (256,)),
        ("s4_fuse.bn.bias", (256,)),
        ("head.projection.weight", (400, 2304)),
    ):
        assert fast[name] == shape
    for name, shape in (
        ("s3.pathway0_nonlocal1.conv_theta.weight", (256, 512, 1, 1, 1)),
        ("s3.pathway0_nonlocal3.conv_out.bias", (512,)),
        ("s4.pathway0_nonlocal5.norm.running_mean", (1024,)),
        ("s3.pathway0_res1.branch2.a.weight", (128, 512, 1, 1, 1)),
        ("head.projection.bias", (400,)),
    ):
        assert local[name] == shape


@pytest.mark.parametrize("arch", ARCHES)
def test_same_logits(arch: str) -> None:
    """Of a file with norms, and of one with sub-norms."""
    state = small(arch)
    clips = torch.randn(2, 3, 16, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        want = pyslowfast.forward(state, clips, arch)
        for stored in (state, with_sub_norms(state)):
            weights = from_pyslowfast({"model_state": stored}, "", "test")
            assert weights.section.name == arch
            torch.testing.assert_close(loaded(weights)(clips), want, rtol=1e-9, atol=1e-9)
    assert want.std() > 0.1


def pytorchvideo_names(state: State, arch: str) -> State:
    """Its names, as in pytorchvideo/models/resnet.py, slowfast.py and net.py."""
    stages = (
        {"1": 0, "2": 1, "3": 3, "4": 4, "5": 5} if arch == "i3d" else {str(stage): stage - 1 for stage in range(1, 6)}
    )
    head = 5 if arch == "slow" else 6
    renamed = {}
    for key, value in state.items():
        first, second, *rest = key.split(".")
        block = f"blocks.{stages.get(first[1], head)}"
        name = re.sub(r"^branch1_bn", "branch1_norm", ".".join(rest))
        name = re.sub(r"^branch1\.", "branch1_conv.", name)
        name = re.sub(r"^branch2\.([abc])_bn", r"branch2.norm_\1", name)
        name = re.sub(r"^branch2\.([abc])\.", r"branch2.conv_\1.", name)
        name = re.sub(r"^bn\.", "norm.", name)
        path = re.match(r"pathway(\d)_(?:stem|res(\d+))", second)
        if first == "head":
            new = f"{block}.proj.{name}"
        elif path is None:
            new = f"{block}.multipathway_fusion.{'conv_fast_to_slow' if second == 'conv_f2s' else 'norm'}.{name}"
        else:
            blocks = f".multipathway_blocks.{path[1]}" if arch == "slowfast" else ""
            new = f"{block}{blocks}{'' if path[2] is None else f'.res_blocks.{path[2]}'}.{name}"
        renamed[new] = value
    return renamed


@pytest.mark.parametrize("arch", ["slowfast", "slow", "i3d"])
def test_pytorchvideo_s_names_are_known_too(arch: str) -> None:
    state = small(arch)
    renamed = pytorchvideo_names(state, arch)
    assert len(renamed) == len(state) and all(key.startswith("blocks.") for key in renamed)
    want, got = from_pyslowfast(state, "", "test"), from_pyslowfast({"model_state": renamed}, "", "test")
    assert got.section == want.section
    assert all(torch.equal(got.state[key], value) for key, value in want.state.items())


@pytest.mark.parametrize(("frames", "alpha", "kernel"), [(32, 8, 5), (64, 4, 7), (12, 4, 5), (8, 8, 7)])
def test_same_frames_in_each_pathway(frames: int, alpha: int, kernel: int) -> None:
    state = small("slowfast", fusion_kernel=kernel)
    cfg = f"SLOWFAST:\n  ALPHA: {alpha}\nDATA:\n  INPUT_CHANNEL_NUM: [3, 3]\n"
    weights = from_pyslowfast({"model_state": state, "cfg": cfg, "epoch": 3}, "", "test")
    assert (weights.section.alpha, weights.section.fusion_kernel, weights.section.beta_inv) == (alpha, kernel, 4)
    clips = torch.randn(1, 3, frames, 33, 46, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(weights)(clips), pyslowfast.forward(state, clips, "slowfast", alpha=alpha))


def test_frames_that_were_trained_are_those_of_the_reference() -> None:
    model = build_model(ModelSection(depth=10, width=8, beta_inv=4, slow_frames="spread"), 3)
    for alpha in (2, 4, 8):
        model.alpha = alpha
        for frames in range(alpha, 129, alpha):
            clip = torch.arange(frames).view(1, 1, frames, 1, 1)
            want = torch.linspace(0, frames - 1, frames // alpha).long()
            assert torch.equal(model._slow_clips(clip).flatten(), want)


def test_depth_and_temporal_blocks_are_recognised() -> None:
    deep = {"blocks": (3, 4, 23, 3), "width": 4, "temporal_blocks": 6}
    section = from_pyslowfast(small("slow", **deep), "", "test").section
    assert (section.depth, section.temporal_blocks, section.width) == (101, 6, 4)
    assert from_pyslowfast(small("i3d", **{**deep, "temporal_blocks": 23}), "", "test").section.temporal_blocks == 0


@pytest.mark.parametrize("arch", ARCHES)
def test_there_and_back(arch: str, tmp_path: Path) -> None:
    state = small(arch)
    files = [str(tmp_path / name) for name in ("theirs.pyth", "ours.pt", "back.pyth")]
    torch.save({"epoch": 1, "model_state": with_sub_norms(state), "optimizer_state": {"state": {}}}, files[0])
    convert_file(files[0], files[1])
    assert read_weights(files[1]).section.name == arch
    convert_file(files[1], files[2])
    back = torch.load(files[2], weights_only=True)["model_state"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_old_files_without_counters_and_with_norms_of_four_dimensions() -> None:
    state = small("slow")
    old = {
        key: value.view(-1, 1, 1, 1) if key.endswith("bn.weight") else value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    weights = from_pyslowfast(old, "", "test").state
    assert torch.equal(weights["stem.1.weight"], state["s1.pathway0_stem.bn.weight"])
    assert weights["stem.1.num_batches_tracked"] == 0


def _without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s | {"head.extra.weight": torch.zeros(2)}, r"unknown keys head\.extra\.weight"),
        (lambda s: _without(s, "s5.pathway0_res1.branch2.b_bn.bias", "head.projection.bias"),
         r"missing keys head\.projection\.bias, s5\.pathway0_res1\.branch2\.b_bn\.bias"),
        (lambda s: s | {"s2.pathway0_res0.branch1.weight": torch.zeros(32, 9, 1, 1, 1)},
         r"s2\.pathway0_res0\.branch1\.weight \(32, 9, 1, 1, 1\), not \(32, 8, 1, 1, 1\)"),
        (lambda s: s | {f"s2.extra{i:02}.weight": torch.zeros(2) for i in range(40)}, r"s2\.extra11\.weight.*s2\.extra39\.weight\)"),
        (lambda s: s | {"s3.pathway0_res1.branch2.a.weight": torch.zeros(16, 64, 3, 1, 1)}, r"spans \[\[1, 1, 1\], \[1, 3"),
        (lambda s: _without(s, "s5.pathway0_res2.branch2.a.weight"), r"stages of \(3, 4, 6, 2\) blocks"),
        (lambda s: {"backbone.conv.weight": torch.zeros(1)}, r"no keys of PySlowFast's.*backbone\.conv\.weight"),
    ],
    ids=["unknown", "missing", "shape", "many", "span", "depth", "other"],
)  # fmt: skip
def test_what_does_not_fit_is_listed(change: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        from_pyslowfast(change(small("slow")), "", "test")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_given_is_held_against_the_keys() -> None:
    with pytest.raises(CheckpointError, match=r"weights of i3d_nln R50 \(missing keys s3\.pathway0_nonlocal1\.conv_g"):
        from_pyslowfast(small("i3d"), "i3d_nln", "test")


def test_files_that_hold_no_tensors_are_refused(tmp_path: Path) -> None:
    caffe2 = tmp_path / "I3D.pkl"
    caffe2.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(3)}}, protocol=2))
    (tmp_path / "text.pyth").write_text("no tensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pyth")
    for name in ("I3D.pkl", "text.pyth", "list.pyth", "absent.pyth"):
        with pytest.raises(CheckpointError, match=r"^weights = ") as caught:
            convert_file(str(tmp_path / name), str(tmp_path / "out.pt"))
        assert "\n" not in str(caught.value)
        assert ("caffe2" in str(caught.value)) == (name != "absent.pyth")


def test_models_that_pyslowfast_lacks_do_not_go_back(tmp_path: Path) -> None:
    section = ModelSection(name="r3d_18")
    write_weights(Weights(section=section, state=undrawn(section, 2).state_dict()), str(tmp_path / "r3d.pt"))
    with pytest.raises(CheckpointError, match="has no name in PySlowFast"):
        convert_file(str(tmp_path / "r3d.pt"), str(tmp_path / "out.pyth"))
    with pytest.raises(CheckpointError, match=r"^OUT = .*cannot be written"):
        write_weights(Weights(section=section, state={}), str(tmp_path / "absent" / "out.pt"))


def test_a_weights_file_is_told_from_others(tmp_path: Path) -> None:
    torch.save(small("slow"), tmp_path / "theirs.pyth")
    with pytest.raises(CheckpointError, match="mgray convert"):
        read_weights(str(tmp_path / "theirs.pyth"))


def still(image: Tensor, frames: int) -> Tensor:
    return image.unsqueeze(2).expand(-1, -1, frames, -1, -1)


@pytest.mark.parametrize(("name", "depth"), [("slow", 18), ("slow", 50), ("i3d", 18), ("i3d", 50), ("i3d_nln", 50)])
def test_an_inflated_network_sees_a_still_clip_as_the_2d_network_sees_its_frame(name: str, depth: int) -> None:
    torch.manual_seed(0)
    flat = ResNet(Bottleneck if depth == 50 else BasicBlock, [3, 4, 6, 3] if depth == 50 else [2, 2, 2, 2])
    for module in flat.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    weights = inflate(flat.state_dict(), name, "test")
    assert (weights.section.depth, weights.section.width, weights.num_classes) == (depth, 64, 1000)
    model = undrawn(weights.section, 1000).eval()
    model.load_state_dict(weights.state)
    assert isinstance(model, ResNet3d)
    image = torch.randn(1, 3, 32, 32)
    maps = nn.Sequential(*list(flat.eval().children())[:-2])
    with torch.no_grad():
        want, got = maps(image), model.features(still(image, 40))
        # zero padding in time is felt at the ends only
        middle = got[:, :, got.shape[2] // 2]
        torch.testing.assert_close(middle, want, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(model.classifier(middle.mean((2, 3))), flat(image), rtol=1e-3, atol=1e-3)
    assert want.std() > 0.1


def test_only_networks_of_one_pathway_are_inflated(tmp_path: Path) -> None:
    torch.save(ResNet(BasicBlock, [1, 1, 1, 1]).state_dict(), tmp_path / "resnet.pth")
    for name in ("", "slowfast", "r3d_18"):
        with pytest.raises(ConfigError, match="one of slow, i3d, i3d_nln"):
            convert_file(str(tmp_path / "resnet.pth"), str(tmp_path / "out.pt"), name=name)
    convert_file(str(tmp_path / "resnet.pth"), str(tmp_path / "out.pt"), name="i3d")
    assert read_weights(str(tmp_path / "out.pt")).section.depth == 10
