import pytest
import torch
from torch import nn

from mgray.model.dropout import ClipDropout, convert_dropout, set_clip_keys

KEYS = torch.tensor([0, 1, 5, -3, 2**62, 17])


def dropout(p: float = 0.5, keys: torch.Tensor = KEYS) -> ClipDropout:
    layer = ClipDropout(p)
    layer.keys_N = keys
    return layer


def mask(keys: torch.Tensor, p: float = 0.5, features: int = 64) -> torch.Tensor:
    return dropout(p, keys)(torch.ones(len(keys), features)) != 0


def test_a_clips_mask_does_not_depend_on_its_batch():
    whole = mask(KEYS)
    for cut in range(1, len(KEYS)):
        assert torch.equal(torch.cat([mask(KEYS[:cut]), mask(KEYS[cut:])]), whole)
    order = torch.randperm(len(KEYS))
    assert torch.equal(mask(KEYS[order]), whole[order])
    assert torch.equal(mask(KEYS), whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_about_p_is_dropped_and_the_rest_scaled(p):
    keys = torch.arange(400)
    output = dropout(p, keys)(torch.ones(400, 500))
    kept = output != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.005)
    assert output[kept].unique().tolist() == pytest.approx([1 / (1 - p)])
    # no clip and no feature is favoured
    assert float((kept.float().mean(1) - (1 - p)).abs().max()) < 0.12
    assert float((kept.float().mean(0) - (1 - p)).abs().max()) < 0.12


def test_neighbouring_clips_and_features_are_independent():
    kept = mask(torch.arange(500), features=500).float()
    for one, other in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1])):
        assert abs(float((one * other).mean()) - 0.25) < 0.005


def test_keys_and_layers_differ():
    masks = mask(torch.tensor([0, 1, 2, 1 << 40, 1 << 62]))
    assert len({tuple(row.tolist()) for row in masks}) == 5
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5))
    convert_dropout(model)
    set_clip_keys(model, KEYS)
    first, second = (layer(torch.ones(len(KEYS), 64)) for layer in (model[0], model[2]))
    assert not torch.equal(first, second)


def test_it_applies_to_any_shape_and_type():
    x = torch.ones(len(KEYS), 2, 3, 4)
    flat = dropout()(x.flatten(1))
    assert torch.equal(dropout()(x), flat.view_as(x))
    for dtype in (torch.bfloat16, torch.float64):
        output = dropout()(x.to(dtype))
        assert output.dtype == dtype and torch.equal(output != 0, flat.view_as(x) != 0)


def test_gradients_pass_where_features_are_kept():
    x = torch.ones(len(KEYS), 8, requires_grad=True)
    output = dropout(0.25)(x)
    output.sum().backward()
    assert torch.equal(x.grad, output.detach())


def test_evaluation_and_no_dropout_change_nothing():
    x = torch.rand(3, 8)
    for layer in (ClipDropout(0.5).eval(), ClipDropout(0.0)):
        assert layer(x) is x


def test_keys_are_needed_in_training():
    for keys in (None, KEYS[:2]):
        layer = ClipDropout(0.5)
        layer.keys_N = keys
        with pytest.raises(ValueError, match="one key for each of 3 clips"):
            layer(torch.ones(3, 8))


def test_conversion_keeps_the_settings_and_touches_nothing_else():
    model = nn.Sequential(nn.Dropout(0.3), nn.Dropout3d(0.3), nn.Sequential(nn.Dropout(0.7)))
    names = list(model.state_dict())
    assert convert_dropout(model) is model
    assert [type(model[0]), type(model[1]), type(model[2][0])] == [ClipDropout, nn.Dropout3d, ClipDropout]
    assert (model[0].p, model[2][0].p) == (0.3, 0.7)
    assert list(model.state_dict()) == names
