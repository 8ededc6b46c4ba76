"""Explanations: agreement with definitions, networks of every build, and networks left as they were found."""

import copy

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from deepfake_nb.evaluation import explain
from deepfake_nb.evaluation.explain import (
    compare,
    copy_reinitialised,
    coverage,
    face_parts,
    grad_cam,
    map_similarity,
    mean_saliency,
    measure_restoring,
    overlay,
    randomisation_check,
    saliency,
    scale_maps,
    show_maps,
    summarise,
    target_layer,
)
from deepfake_nb.networks.mesonet import Meso4, MesoInception4
from deepfake_nb.sections.frame_detectors import SimpleNet
from deepfake_nb.study.files import InputError


class Small(nn.Module):
    """Convolution, batch norm, in-place ReLU, mean, head; stills or clips."""

    def __init__(self, outputs=2, clips=False):
        super().__init__()
        self.conv = (nn.Conv3d if clips else nn.Conv2d)(3, 5, 3, padding=1)
        self.norm = (nn.BatchNorm3d if clips else nn.BatchNorm2d)(5)
        self.head = nn.Linear(5, outputs)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, inputs):
        maps = nn.functional.relu(self.norm(self.conv(inputs)), inplace=True).flatten(2)
        logits = self.head(maps.mean(2))
        return logits.squeeze(1) if logits.shape[1] == 1 else logits


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval()


def stills(count=4, side=16, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def one_logit(network):
    """The network whose single logit is the margin of a network with two."""
    single = Small(1).eval()
    single.load_state_dict({k: v for k, v in network.state_dict().items() if "head" not in k}, strict=False)
    single.head.weight.data = network.head.weight.data[1:] - network.head.weight.data[:1]
    single.head.bias.data = network.head.bias.data[1:] - network.head.bias.data[:1]
    return single


def test_saliency_is_the_numerical_slope(small):
    inputs, small = stills(1, 5).double(), small.double()
    maps = saliency(small, inputs, 1)[0]
    with torch.no_grad():
        steps = 1e-5 * torch.eye(inputs.numel(), dtype=torch.float64).reshape(-1, *inputs.shape[1:])
        slopes = (small(inputs + steps)[:, 1] - small(inputs - steps)[:, 1]) / 2e-5
    expected = slopes.reshape(inputs.shape[1:]).abs().amax(0).numpy()
    assert expected.max() > 1e-3
    assert maps == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", [saliency, grad_cam])
@pytest.mark.parametrize("classes", [None, 0, 1, [1, 0, 0, 1]])
def test_one_logit_and_two_say_the_same(small, method, classes):
    options = {"scale": "none"} if method is grad_cam else {}
    two = method(small, stills(), classes=classes, score="margin", **options)
    one = method(one_logit(small), stills(), classes=classes, **options)
    assert one == pytest.approx(two, abs=1e-6) and two.max() > 0


def test_a_column_of_logits_is_one_logit(small):
    single = one_logit(small)
    column = copy.deepcopy(single)
    column.forward = lambda inputs: single(inputs)[:, None]
    assert saliency(column, stills(), 0) == pytest.approx(saliency(single, stills(), 0))


@pytest.mark.parametrize("method", [saliency, grad_cam])
def test_batches_do_not_matter(small, method):
    whole = method(small, stills(7), classes=1)
    assert method(small, stills(7), classes=1, batch_size=3) == pytest.approx(whole, abs=1e-6)


def test_grad_cam_is_what_pytorch_grad_cam_gives(small):
    for network, layer, side in ((small, small.conv, 16), (SimpleNet().eval(), "conv3", 256)):
        inputs = stills(2, side)
        module = network.get_submodule(layer) if isinstance(layer, str) else layer
        theirs = GradCAM(network, [module])(inputs, [ClassifierOutputTarget(1)] * 2)
        assert theirs.max() > 0.5, "an empty map compares to anything"
        assert grad_cam(network, inputs, layer, 1, scale="range") == pytest.approx(theirs, abs=2e-3)


def test_grad_cam_of_a_clip_follows_its_definition():
    torch.manual_seed(0)
    network, clips = Small(clips=True).eval(), torch.randn(2, 3, 4, 6, 5)
    activations = network.conv(clips).detach().requires_grad_()
    logits = network.head(torch.relu(network.norm(activations)).flatten(2).mean(2))
    (gradients,) = torch.autograd.grad(logits[:, 1].sum(), activations)
    expected = (gradients.mean((2, 3, 4), keepdim=True) * activations).sum(1).relu().detach().numpy()
    assert expected.max() > 0
    assert grad_cam(network, clips, "conv", 1, scale="none") == pytest.approx(expected, abs=1e-7)
    assert saliency(network, clips, 1).shape == (2, 4, 6, 5)


def test_an_in_place_relu_behind_the_layer_changes_nothing():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network, inputs = nn.Sequential(body, nn.Linear(4, 2)).eval(), stills(3)
    in_place = grad_cam(network, inputs, body[0], 1, scale="none")
    body[1].inplace = False
    assert in_place == pytest.approx(grad_cam(network, inputs, body[0], 1, scale="none"), abs=1e-7)


DETECTORS = {
    "SimpleNet": (SimpleNet, 256),
    "Meso4": (lambda: Meso4(64), 64),
    "MesoInception4": (lambda: MesoInception4(64), 64),
    "legacy_xception": (lambda: timm.create_model("legacy_xception", num_classes=2), 96),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=2), 64),
    "densenet121": (lambda: timm.create_model("densenet121", num_classes=2), 64),
    "mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=1), 64),
}


LAST_MAPS = {
    "SimpleNet": "conv3",
    "legacy_xception": "conv4.pointwise",
    "resnet18": "layer4.1.act2",
    "densenet121": "features.denseblock4",
}


@pytest.mark.parametrize("name", DETECTORS)
def test_all_evidence_passes_the_layer_chosen(name):
    torch.manual_seed(0)
    build, side = DETECTORS[name]
    network, inputs = build(), stills(2, side)
    layer = target_layer(network, inputs)
    names = {module: name for name, module in network.named_modules()}
    if name in LAST_MAPS:
        assert names[layer] == LAST_MAPS[name]
    with explain.forward_hook([layer], lambda module, inputs, output: torch.zeros_like(output)):
        answers = network.eval()(torch.cat([inputs, 3 * inputs]))
    assert torch.allclose(answers, answers[:1].expand_as(answers), atol=1e-5)
    maps = grad_cam(network, inputs, classes=1)
    assert maps.shape == (2, side, side) and 0 <= maps.min() and maps.max() <= 1


def test_a_network_with_two_backbones_wants_a_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 5), nn.Linear(4, 2)

        def forward(self, inputs):
            return self.head(torch.cat([self.a(inputs).mean((2, 3)), self.b(inputs).mean((2, 3))], 1))

    with pytest.raises(InputError, match=r"side by side\. Name a layer"):
        grad_cam(Two(), stills())
    assert grad_cam(Two(), stills(), "a").shape == (4, 16, 16)
    with pytest.raises(InputError, match="no convolution"):
        target_layer(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), stills())


@pytest.mark.parametrize("method", [saliency, grad_cam, lambda *a: measure_restoring(*a, stills(), MASKS)])
def test_a_network_is_left_as_it_was_found(small, method):
    small.train()
    small.norm.eval()
    small.conv.weight.requires_grad_(False)
    small(stills()).sum().backward()
    before = copy.deepcopy(small.state_dict())
    gradient = small.head.weight.grad.clone()
    inputs = stills()
    with torch.no_grad():
        method(small, inputs)
    assert (small.training, small.norm.training, small.head.training) == (True, False, True)
    assert [p.requires_grad for p in small.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(small.head.weight.grad, gradient) and small.conv.weight.grad is None
    assert all(torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items())
    assert not inputs.requires_grad
    assert not any(m._forward_hooks or m._backward_hooks for m in small.modules())


MASKS = np.zeros((4, 16, 16), bool)


def test_a_fault_in_the_middle_leaves_no_hooks(small):
    class Faulty(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small

        def forward(self, inputs):
            if len(inputs) < 3:
                raise RuntimeError("out of memory")
            return self.inner(inputs)

    network = Faulty().train()
    for method in (saliency, grad_cam):
        with pytest.raises(RuntimeError, match="out of memory"):
            method(network, stills(4), *(["inner.conv"] if method is grad_cam else []), batch_size=3)
        assert network.training and small.conv.weight.requires_grad
        assert not any(module._forward_hooks for module in network.modules())


class Constant(nn.Module):
    def __init__(self, learns):
        super().__init__()
        self.conv, self.bias = nn.Conv2d(3, 2, 3), nn.Parameter(torch.tensor([0.0, 1.0]))
        self.learns = learns

    def forward(self, inputs):
        ignored = self.conv(inputs).mean() * 0
        return self.bias.expand(len(inputs), 2) + (ignored if self.learns else ignored.detach())


@pytest.mark.parametrize("learns", [True, False])
def test_a_network_that_ignores_its_input_gives_zeros_and_a_reason(learns):
    network, masks = Constant(learns), np.ones((4, 16, 16), bool)
    masks[:, 8:] = False
    for maps in (saliency(network, stills()), grad_cam(network, stills(), "conv")):
        assert maps.shape == (4, 16, 16) and not maps.any()
        table = coverage(maps, masks)
        assert table["auc"].isna().all() and table["reason"].str.contains("zero everywhere").all()
        summary = summarise(table)
        assert summary.loc["auc", "value"] is pd.NA and summary.loc["auc", "left_out"] == 4
        assert "zero everywhere" in summary.loc["auc", "reason"]
    assert mean_saliency(network, [(stills(), [0, 0, 1, 1])])[1].n_empty == 2


def test_mean_saliency_over_batches_is_the_mean_over_all(small):
    labels = np.array([0, 1, 1, 0, 1, 1, 1])
    maps = scale_maps(saliency(small, stills(7), labels), "range")
    batches = ((stills(7)[i : i + 2], labels[i : i + 2]) for i in range(0, 7, 2))
    means = mean_saliency(small, batches)
    assert [mean.n for mean in means.values()] == [2, 5]
    for label, mean in means.items():
        assert mean.map == pytest.approx(maps[labels == label].mean(0), abs=1e-6)
        assert 0 < mean.map.max() <= 1


def test_coverage_agrees_with_scikit_learn_and_knows_chance():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    maps, masks = rng.integers(0, 4, (6, 9, 11)).astype(float), rng.random((6, 9, 11)) < 0.2
    table = coverage(maps, masks)
    expected = [roc_auc_score(mask.ravel(), map.ravel()) for map, mask in zip(maps, masks, strict=True)]
    assert table["auc"].to_numpy(float) == pytest.approx(expected)
    uniform = coverage(np.full(masks.shape, 0.3), masks)
    assert uniform["auc"].tolist() == [0.5] * 6
    for name in ("pointing", "energy_inside"):
        assert uniform[name].to_numpy(float) == pytest.approx(masks.mean((1, 2)))
    louder = coverage(maps * 7, masks)
    pd.testing.assert_frame_equal(louder, table)


def test_maps_at_random_cover_by_chance_within_the_interval():
    rng = np.random.default_rng(3)
    masks = np.zeros((200, 20, 20), bool)
    masks[:, 5:15, 5:15] = True
    summary = summarise(coverage(rng.random(masks.shape), masks), rng=rng)
    for name, chance in {"pointing": 0.25, "energy_inside": 0.25, "auc": 0.5}.items():
        assert summary.loc[name, "low"] < chance < summary.loc[name, "high"], name
    assert summary.loc["mask_share", "value"] == 0.25


def test_empty_and_full_masks_are_left_out_with_a_reason():
    masks = np.zeros((3, 4, 4), bool)
    masks[1], masks[2, 0] = True, True
    table = coverage(np.ones((3, 4, 4)), masks)
    assert table["auc"].isna().tolist() == [True, True, False]
    summary = summarise(table)
    assert summary.loc["auc", "n"] == 1 and summary.loc["auc", "left_out"] == 2
    assert "empty" in summary.loc["auc", "reason"] and "whole image" in summary.loc["auc", "reason"]
    assert "NaN" not in summary.to_json() and table.to_json().count("null") == 6


def test_intervals_are_over_people_not_frames():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(10), 20)
    maps = np.ones((200, 2, 2)) + np.repeat(rng.random(10) * 5, 20)[:, None, None] * np.eye(2)[0]
    masks = np.broadcast_to(np.array([[True, False], [False, False]]), maps.shape)
    table = coverage(maps, masks)
    frames, clusters = (summarise(table, c).loc["energy_inside"] for c in (None, people))
    assert clusters["value"] == pytest.approx(frames["value"])
    assert clusters["high"] - clusters["low"] > 2 * (frames["high"] - frames["low"])
    assert (clusters["n"], frames["n"]) == (10, 200)
    one = summarise(table[:20], people[:20]).loc["energy_inside"]
    assert one["low"] is pd.NA and one["reason"]


def test_differences_are_taken_picture_by_picture():
    rng = np.random.default_rng(0)
    masks = rng.random((30, 6, 6)) < 0.3
    maps = rng.random(masks.shape) * np.linspace(1, 9, 30)[:, None, None]
    better = coverage(maps + 0.5 * masks * maps, masks)
    plain = coverage(maps, masks)
    paired = summarise(compare(better, plain)).loc["energy_inside"]
    assert 0 < paired["low"] < paired["value"] < paired["high"]
    assert paired["value"] == pytest.approx(float((better["energy_inside"] - plain["energy_inside"]).mean()))
    assert paired["high"] - paired["low"] < summarise(better).loc["energy_inside"].pipe(
        lambda r: r.high - r.low
    )
    same = summarise(compare(plain, plain)).loc["auc"]
    assert same["value"] == 0 and same["low"] is pd.NA, (
        "no interval may be made up where all differences are 0"
    )


def test_restoring_everything_restores_the_original(small):
    forged, originals = stills(4, seed=1), stills(4, seed=2)
    everything = measure_restoring(small, forged, originals, ~MASKS)
    nothing = measure_restoring(small, forged, originals, MASKS)
    assert everything["effect"].tolist() == everything["whole"].tolist() == nothing["whole"].tolist()
    assert nothing["effect"].tolist() == [0] * 4
    logits = small(forged)[:, 1] - small(forged)[:, 0] - small(originals)[:, 1] + small(originals)[:, 0]
    assert everything["whole"].to_numpy() == pytest.approx(logits.detach().numpy(), abs=1e-6)


def test_forgetting_is_repeatable_and_leaves_the_network(small):
    weight, state = small.head.weight.clone(), torch.random.get_rng_state()
    one, same, other = (
        copy_reinitialised(small, 1),
        copy_reinitialised(small, 1),
        copy_reinitialised(small, 2),
    )
    assert torch.equal(one.conv.weight, same.conv.weight) and not torch.equal(
        one.conv.weight, other.conv.weight
    )
    assert torch.equal(small.head.weight, weight) and not torch.equal(one.head.weight, weight)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert not torch.equal(Small().conv.weight, one.conv.weight), (
        "a network must not forget into its own beginning"
    )
    head_only = copy_reinitialised(small, 1, ["head"])
    assert torch.equal(head_only.conv.weight, small.conv.weight)
    assert float(one.norm.running_var.std()) == 0, "what a batch norm has seen is forgotten too"


def test_randomisation_check_separates_a_map_of_the_network_from_one_of_the_image(small):
    def edges(network, inputs):
        return inputs.abs().amax(1).numpy()

    assert randomisation_check(small, stills(), edges)["value"].tolist() == pytest.approx([1, 1])
    check = randomisation_check(small, stills(), saliency)
    assert check.index.tolist() == ["head", "conv"] and check["value"]["conv"] < 0.9
    with pytest.raises(InputError, match="no layer 'conv9'"):
        randomisation_check(small, stills(), saliency, layers=["conv9"])


def test_similarity_is_of_ranks():
    maps = np.random.default_rng(0).random((2, 5, 5))
    assert map_similarity(maps, maps**3)["rank_correlation"].tolist() == pytest.approx([1, 1])
    flat = map_similarity(maps, np.ones_like(maps))
    assert flat["rank_correlation"].isna().all() and flat["reason"].str.contains("same everywhere").all()


def test_parts_follow_a_face_that_turns():
    upright = np.array([[20, 25], [44, 25], [32, 38], [23, 50], [41, 50]], float)
    turned = np.stack([63 - upright[:, 1], upright[:, 0]], 1)[None]
    parts = face_parts(np.concatenate([upright[None], turned]), (64, 64))
    assert sum(parts.values()).tolist() == np.ones((2, 64, 64)).tolist()
    for name, area in parts.items():
        assert (np.rot90(area[0], -1) != area[1]).mean() < 0.03, name
    assert parts["mouth"][0, 50, 32] and parts["eyes"][0, 25, 20] and parts["nose"][0, 36, 32]
    assert parts["outside"][0, 0, 0] and not parts["outside"][0, 30, 32]


BAD = {
    "bytes": (lambda n: saliency(n, torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "Inputs are torch.uint8"),
    "one picture": (lambda n: saliency(n, stills()[0]), r"shape \(3, 16, 16\)"),
    "class 2": (lambda n: saliency(n, stills(), 2), "Classes are 0 .real. or 1 .fake."),
    "too few classes": (lambda n: grad_cam(n, stills(), classes=[1, 0]), "each of 4 inputs"),
    "score": (lambda n: saliency(n, stills(), score="probability"), "'logit' or 'margin'"),
    "NaN": (
        lambda n: saliency(n, stills() * torch.tensor([1, 1, np.nan, 1])[:, None, None, None].float()),
        "input 2",
    ),
    "no such layer": (
        lambda n: grad_cam(n, stills(), "conv7"),
        "no layer 'conv7'. Its last convolutions: conv",
    ),
    "empty name": (lambda n: grad_cam(n, stills(), ""), "no layer ''"),
    "foreign layer": (lambda n: grad_cam(n, stills(), nn.Conv2d(1, 1, 1)), "not part of the network"),
    "layer without maps": (lambda n: grad_cam(n, stills(), "head"), "Name another layer"),
    "maps as answer": (lambda n: saliency(n.conv, stills()), r"logits are \(N,\)"),
    "scaling": (lambda n: scale_maps(np.ones((1, 2, 2)), "softmax"), "not 'softmax'"),
    "other shape": (lambda n: coverage(np.ones((1, 2, 2)), np.ones((1, 2, 3), bool)), "one shape"),
    "soft masks": (lambda n: coverage(np.ones((1, 2, 2)), np.ones((1, 2, 2))), "masks > 0.5"),
    "negative map": (lambda n: coverage(-np.ones((1, 2, 2)), np.ones((1, 2, 2), bool)), "at least 0"),
    "NaN in a map": (lambda n: coverage(np.full((1, 2, 2), np.nan), np.ones((1, 2, 2), bool)), "finite"),
    "clusters": (
        lambda n: summarise(coverage(np.ones((1, 2, 2)), np.eye(2)[None] > 0), [1, 2]),
        "2 clusters for 1",
    ),
    "other pictures": (
        lambda n: compare(pd.DataFrame({"auc": [1]}), pd.DataFrame({"auc": [1, 2]})),
        "same images",
    ),
    "pairs": (lambda n: measure_restoring(n, stills(4), stills(3), MASKS), "do not fit"),
    "points": (lambda n: face_parts(np.zeros((2, 68, 2)), (8, 8)), "Landmarks are"),
    "overlay": (lambda n: overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((5, 5))), "does not fit"),
    "bright overlay": (lambda n: overlay(np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 3.0)), "from 0 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_a_sentence(small, case):
    call, words = BAD[case]
    with pytest.raises(InputError, match=words) as raised:
        call(small)
    assert "\n" not in str(raised.value)


def test_no_pictures_give_no_maps(small):
    assert saliency(small, torch.zeros(0, 3, 8, 8)).shape == (0, 8, 8)
    assert grad_cam(small, torch.zeros(0, 3, 8, 8)).shape == (0, 8, 8)


def test_a_layer_that_runs_twice_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, inputs):
            return self.head(self.conv(self.conv(inputs)).mean((2, 3)))

    with pytest.raises(InputError, match="one output of shape"):
        grad_cam(Shared(), stills(), "conv")


def test_overlay_keeps_the_picture_where_the_map_is_zero():
    picture = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    map = np.zeros((6, 6))
    map[2, 3] = 1
    shown = overlay(picture, map)
    grey = np.round(picture @ [0.299, 0.587, 0.114])
    assert shown.dtype == np.uint8 and (shown[map == 0] == grey[map == 0][:, None]).all()
    assert shown[2, 3].tolist() != [grey[2, 3]] * 3


def test_a_figure_names_its_scale_and_survives_empty_maps():
    import matplotlib

    matplotlib.use("agg")
    pictures, masks = np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 8, 8), bool)
    figure = show_maps(
        pictures,
        [np.zeros((3, 8, 8)), np.random.default_rng(0).random((3, 8, 8))],
        ["a", "b", "c"],
        masks,
        full_at=0.99,
    )
    figure.canvas.draw()
    assert figure.axes[-1].get_ylabel() == "map over its\n99 % quantile"
    assert len(figure.axes) == 10
    matplotlib.pyplot.close(figure)
