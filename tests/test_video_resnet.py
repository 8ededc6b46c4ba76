"""The video ResNet: agreement with the released network, clips of every length and size, other checkpoints."""

import numpy as np
import pytest
import torch
from parity import drawn, filled, fixture

from deepfake_nb.networks import weights
from deepfake_nb.networks.video_resnet import (
    VideoResNet,
    from_released_keys,
    kernel_groups,
    load_backbone,
    named_groups,
    normalise_clips,
    save_video_resnet,
)
from deepfake_nb.study.files import InputError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def fill(shapes):
    """Tensors that are drawn from their names."""
    return {name: filled(name, tuple(shape)) for name, shape in shapes.items()}


def filled_network(**options):
    """A small network in eval mode whose blocks all take part, unlike those of an untrained one."""
    torch.manual_seed(0)
    network = VideoResNet(**{"width": 4} | options).eval()
    network.load_state_dict(fill({key: tuple(t.shape) for key, t in network.state_dict().items()}))
    return network


def random_clips(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def altfreezing_kind(monkeypatch):
    """The kind under which weight files of this network are known."""
    monkeypatch.setitem(weights.KINDS, "altfreezing", "deepfake_nb.networks.video_resnet:VideoResNet")


@pytest.fixture
def narrow_kind(monkeypatch):
    """The same, of a network that is quick to fill."""
    monkeypatch.setattr(
        "deepfake_nb.networks.video_resnet.NarrowResNet", lambda: VideoResNet(width=4), raising=False
    )
    monkeypatch.setitem(weights.KINDS, "altfreezing", "deepfake_nb.networks.video_resnet:NarrowResNet")


@pytest.fixture(scope="module")
def released():
    return fixture("altfreezing")


@pytest.mark.slow
def test_outputs_are_those_of_the_released_network(released, altfreezing_kind):
    network = weights.import_state_dict("altfreezing", fill(released["keys"]))
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) == released["parameters"]
    for name, shape in released["inputs"].items():
        with torch.inference_mode():
            answer = network(drawn(name, shape))
        np.testing.assert_allclose(answer.numpy(), released["logits"][name], rtol=0, atol=1e-3, err_msg=name)


def test_names_and_shapes_are_the_released_ones(released):
    with torch.device("meta"):
        ours = {f"resnet.{key}": list(t.shape) for key, t in VideoResNet().state_dict().items()}
    assert ours == released["keys"]


@pytest.mark.parametrize(
    "shape", [(8, 160, 160), (32, 64, 64), (4, 256, 256), (1, 96, 96), (2, 33, 47), (7, 101, 64), (3, 1, 1)]
)
@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_every_length_and_size_gives_one_logit_per_clip(shape, head):
    network = filled_network(width=2, head=head)
    clips = random_clips(2, 3, *shape)
    frames, height, width = shape
    with torch.inference_mode():
        maps = network.forward_maps(clips)
        logits = network.head(network.head.summarise(maps)).squeeze(1)
        alone = torch.cat([network(clip[None]) for clip in clips])
    assert maps.shape == (2, 64, -(-frames // 2), -(-height // 32), -(-width // 32))
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(alone, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_a_network_on_the_meta_device_has_an_output_shape(head):
    network = VideoResNet(width=2, head=head).to("meta")
    assert network(torch.empty(2, 3, 4, 64, 64, device="meta")).shape == (2,)


def test_no_frame_of_an_odd_clip_is_dropped():
    network, clips = filled_network(), random_clips(1, 3, 5, 48, 48)
    other = clips.clone()
    other[:, :, -1] += random_clips(1, 3, 48, 48, seed=1)
    with torch.inference_mode():
        assert (network(clips) - network(other)).abs() > 1e-4


def test_the_order_of_frames_matters_and_a_still_picture_is_a_clip():
    network, clips = filled_network(), random_clips(1, 3, 6, 48, 48)
    with torch.inference_mode():
        assert (network(clips) - network(clips[:, :, [3, 0, 5, 2, 4, 1]])).abs() > 1e-4
        assert network(clips[:, :, :1]).shape == (1,)


@pytest.mark.parametrize("width", [1, 3, 8, 16])
@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_widths_scale_every_stage(width, head):
    with torch.device("meta"):
        network = VideoResNet(width=width, head=head)
    assert network.s1.pathway0_stem.conv.out_channels == width
    assert network.s5[-1].branch2.c.out_channels == 32 * width
    assert network.num_features == (32 if head == "linear" else 8) * width
    groups = kernel_groups(network)
    assert (len(groups["spatial"]), len(groups["temporal"])) == (16, 9)
    assert sum(p.numel() for p in groups["spatial"].values()) == 11_317_248 * width**2 // 64**2


@pytest.mark.parametrize("grouping", [kernel_groups, named_groups])
@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_every_parameter_is_in_one_group_and_is_the_network_s_own(grouping, head):
    network = VideoResNet(width=2, head=head, pooling="class")
    grouped = [pair for group in grouping(network).values() for pair in group.items()]
    assert sorted(name for name, _ in grouped) == sorted(dict(network.named_parameters()))
    assert {id(p) for _, p in grouped} == {id(p) for p in network.parameters()}


def test_groups_by_released_name_are_the_published_ones():
    with torch.device("meta"):
        groups = named_groups(VideoResNet())
    assert {name: len(group) for name, group in groups.items()} == {
        "spatial": 1,
        "temporal": 0,
        "shared": 160,
    }
    assert [p.numel() for p in groups["spatial"].values()] == [47_040]


@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_every_parameter_has_a_gradient(head):
    network = VideoResNet(width=2, head=head, pooling="class").train()
    network.load_state_dict(fill({key: tuple(t.shape) for key, t in network.state_dict().items()}))
    network(random_clips(4, 3, 4, 64, 64)).sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training):
    network = VideoResNet(width=2).train(training)
    clips = random_clips(2, 3, 4, 32, 32)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    network(clips)
    load_backbone(network, before)
    assert {module.training for module in network.modules()} == {training}
    network(clips)
    moved = [key for key, t in network.state_dict().items() if not torch.equal(t, before[key])]
    assert bool(moved) == training


def test_dropout_is_only_for_training():
    network, clips = filled_network(), random_clips(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(clips), network(clips))
        network.head.train()
        assert not torch.equal(network(clips), network(clips))


def test_channels_last_gives_the_same_numbers():
    network, clips = filled_network(width=8), random_clips(2, 3, 8, 80, 72)
    with torch.inference_mode():
        expected = network(clips)
        network.to(memory_format=torch.channels_last_3d)
        answer = network(clips.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-4)


def test_the_same_seed_builds_the_same_network():
    first, second = (torch.manual_seed(5) and VideoResNet(width=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "clips, words",
    [
        (torch.zeros(3, 4, 32, 32), "has the shape"),
        (torch.zeros(1, 4, 3, 32, 32), "not (1, 4, 3, 32, 32)"),
        (torch.zeros(1, 3, 0, 32, 32), "not (1, 3, 0, 32, 32)"),
        (torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8), "not normalised"),
    ],
)
def test_other_input_is_refused_in_words(clips, words):
    with pytest.raises(InputError) as error:
        VideoResNet(width=1)(clips)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "clips",
    [
        np.zeros((4, 32, 32, 3), np.uint8),
        np.zeros((1, 3, 4, 32, 32), np.uint8),
        np.zeros((1, 4, 8, 8, 3), np.float32),
    ],
)
def test_clips_that_are_not_pixels_are_refused(clips):
    with pytest.raises(InputError, match="Clips are uint8"):
        normalise_clips(clips)


def test_views_into_a_read_only_track_become_input(recwarn):
    crops = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    crops.flags.writeable = False
    clips = normalise_clips([crops[0:4], crops[6:10]])
    mean, deviation = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
    np.testing.assert_allclose(clips[1].permute(1, 2, 3, 0), (crops[6:10] - mean) / deviation, atol=1e-5)
    assert not recwarn.list


@pytest.mark.parametrize("options", [{"head": "mean"}, {"pooling": "max"}, {"width": 0}])
def test_options_that_do_not_exist_are_refused(options):
    with pytest.raises(UsageError):
        VideoResNet(**{"width": 1, "head": "transformer"} | options)


@pytest.mark.parametrize("prefix", ["", "resnet.", "network.", "network.resnet.", "module.network.resnet."])
def test_prefixes_are_ignored(prefix, narrow_kind):
    source, clips = filled_network(), random_clips(1, 3, 4, 32, 32)
    state_dict = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    assert list(from_released_keys(state_dict)) == list(source.state_dict())
    network = weights.import_state_dict("altfreezing", state_dict)
    with torch.inference_mode():
        assert torch.equal(network(clips), source(clips))


def training_checkpoint(network):
    """What the paper's training script saves, less its numbers of NumPy."""
    optimizer = torch.optim.Adam(network.parameters())
    network(random_clips(2, 3, 2, 32, 32)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "model_state_dict": {f"network.resnet.{key}": t for key, t in network.state_dict().items()},
        "spatial_optimizer_state_dict": optimizer.state_dict(),
        "history": [{"epoch": 1, "train_loss": 0.5}],
    }


@pytest.mark.slow
def test_a_training_checkpoint_is_unwrapped(tmp_path, narrow_kind):
    source = filled_network()
    checkpoint = training_checkpoint(source)
    assert list(from_released_keys(checkpoint)) == list(source.state_dict())
    torch.save(checkpoint, tmp_path / "tuned.pth")
    network = weights.import_state_dict("altfreezing", weights.read_state_dict(tmp_path / "tuned.pth"))
    assert weights.check_file(tmp_path / "tuned.pth").kind == "altfreezing"
    assert all(torch.equal(t, source.state_dict()[key]) for key, t in network.state_dict().items())


def test_a_backbone_goes_into_a_network_with_another_head():
    source, clips = filled_network(), random_clips(1, 3, 4, 32, 32)
    target = VideoResNet(width=4, head="transformer").eval()
    head = {key: tensor.clone() for key, tensor in target.head.state_dict().items()}
    assert load_backbone(target, {"model_state_dict": source.state_dict()}) is target
    assert torch.equal(target.forward_maps(clips), source.forward_maps(clips))
    assert all(torch.equal(tensor, head[key]) for key, tensor in target.head.state_dict().items())


def wrong_checkpoints():
    state_dict = filled_network().state_dict()
    first = "s1.pathway0_stem.conv.weight"
    return {
        "of another width": (filled_network(width=2).state_dict(), "another shape"),
        "with a tensor missing": (
            {k: t for k, t in state_dict.items() if k != first},
            f"lacks 1 tensors such as '{first}'",
        ),
        "with a tensor too many": (
            state_dict | {"s6.weight": torch.zeros(3)},
            "has besides 1 tensors such as 's6.weight'",
        ),
        "of another network": ({"conv1.weight": torch.zeros(4, 3, 7, 7)}, "lacks"),
        "empty": ({}, "lacks"),
    }


@pytest.mark.parametrize("which", list(wrong_checkpoints()))
def test_wrong_checkpoints_are_refused_in_words(which, narrow_kind):
    state_dict, words = wrong_checkpoints()[which]
    with pytest.raises(InputError) as error:
        weights.import_state_dict("altfreezing", state_dict)
    assert words in str(error.value)
    with pytest.raises(InputError, match="video ResNet"):
        load_backbone(VideoResNet(width=4), state_dict)


def test_another_width_is_named():
    with pytest.raises(
        InputError, match=r"of width 2, and the network has width 4. Build it with `VideoResNet\(width=2\)`"
    ):
        load_backbone(VideoResNet(width=4), filled_network(width=2).state_dict())


# --- files of networks trained here ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"head": "transformer"}, {"head": "transformer", "pooling": "class"}]
)
@pytest.mark.parametrize("width", [1, 3])
def test_a_file_of_ours_gives_the_same_network_back(tmp_path, width, options):
    source, path = filled_network(width=width, dropout=0.25, **options), tmp_path / "ours.safetensors"
    source.train()
    save_video_resnet(
        path, source, "rendered people", clip_length=8, size=32, stride=2, threshold=0.2, found="on val"
    )
    network, file = weights.load_detector("altfreezing", path)
    assert source.training and not network.training
    assert (network.settings, file.settings) == (source.settings, source.settings)
    assert network.head.dropout.p == 0.25
    usage = {"clip_length": 8, "size": 32, "stride": 2, "threshold": 0.2, "found": "on val"}
    assert (file.usage, file.trained_on, file.kind) == (usage, "rendered people", "altfreezing")
    clips = random_clips(2, 3, 4, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(clips), source.eval()(clips))


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_video_resnet(tmp_path / f"{name}.safetensors", filled_network(width=2), "nothing")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_of_ours_gives_its_backbone(tmp_path):
    source, path = filled_network(), tmp_path / "ours.safetensors"
    save_video_resnet(path, source, "nothing")
    target = load_backbone(VideoResNet(width=4, head="transformer"), weights.read_state_dict(path))
    clips = random_clips(1, 3, 4, 32, 32)
    assert torch.equal(target.eval().forward_maps(clips), source.forward_maps(clips))


@pytest.mark.parametrize("options", [{"clip_length": 0}, {"size": 0}, {"stride": 0}, {"threshold": 1.0}])
def test_usage_out_of_range_is_not_written(tmp_path, options):
    with pytest.raises(UsageError):
        save_video_resnet(tmp_path / "ours.safetensors", VideoResNet(width=1), "nothing", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_bare_state_dict_of_another_width_is_named(tmp_path):
    torch.save(filled_network().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="of a video ResNet of width 4, and this one has width 64"):
        weights.load_detector("altfreezing", tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"of a video ResNet of width 4.*in another shape"):
        weights.import_state_dict("altfreezing", filled_network().state_dict())
    settings = filled_network().settings
    assert weights.import_state_dict("altfreezing", filled_network().state_dict(), settings).width == 4
