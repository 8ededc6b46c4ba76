"""The weights that come with the package, and detectors that are put together from two files."""

import copy

import numpy as np
import pytest
import safetensors
import torch

from deepfake_nb.networks import face_encoder, weights
from deepfake_nb.networks.weights import check_file, load_detector
from deepfake_nb.scoring.score import ON_CLIP, RENDERED, SMALL
from deepfake_nb.study.files import InputError

SHIPPED = [name for name, entry in weights.REGISTRY.items() if entry.file]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_comes_with_the_package_is_what_was_registered(name):
    entry, report = weights.REGISTRY[name], check_file(weights.fetch(name))
    assert (report.published, report.kind, report.size) == (name, entry.kind, entry.size)
    assert report.sha256 == entry.sha256 and entry.size < 8e6
    assert report.trained_on == entry.trained_on
    assert report.usage["size"] == entry.input_size


@pytest.mark.parametrize("name", RENDERED)
def test_the_detectors_of_rendered_people_say_so(name, monkeypatch):
    monkeypatch.setattr("requests.sessions.Session.request", None)
    entry, loaded = weights.REGISTRY[name], load_detector(name)
    assert loaded.weights.published == name and loaded.weights.size == entry.size < 4e6
    assert loaded.weights.trained_on == entry.trained_on and "never seen a real person" in entry.trained_on
    assert loaded.weights.usage["size"] == entry.input_size
    assert loaded.weights.usage["made"]["command"].startswith(f"python {entry.source.rpartition(' ')[2]} ")
    assert not loaded.network.training and next(loaded.network.parameters()).dtype == torch.float32


def test_all_shipped_detectors_are_registered():
    assert SHIPPED == [*RENDERED, *ON_CLIP, *SMALL]


# --- detectors on CLIP --------------------------------------------------------------------------------------------


@pytest.fixture
def small_clip(monkeypatch):
    """In place of CLIP's encoder one of two blocks and 64 channels, whose file is always there."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    encoder = VisionTransformer(224, 56, embed_dim=64, depth=2, num_heads=2, num_classes=0, pre_norm=True)
    monkeypatch.setattr(face_encoder, "load_clip", lambda path: copy.deepcopy(encoder))
    monkeypatch.setattr(weights, "encoder_file", lambda name, base: f"{base}.onnx")
    return encoder


def on_clip(kind, path, settings, network=None):
    """A weight file of a detector on CLIP with random numbers."""
    torch.manual_seed(1)
    network = network or getattr(face_encoder, weights.KINDS[kind].partition(":")[2])(**settings)
    weights.save_network(path, kind, network, "noise", settings, size=224)
    return path


ON_SMALL_CLIP = {
    "edited-faces": ("clip-tuned", {"width": 64, "depth": 2}),
    "generated-faces": ("clip-probe", {"width": 64, "blocks": [0, 1]}),
}


@pytest.mark.parametrize("name", ON_CLIP)
def test_a_detector_on_clip_is_put_together_from_two_files(small_clip, tmp_path, name):
    kind, settings = ON_SMALL_CLIP[name]
    path = on_clip(kind, tmp_path / "own.safetensors", settings)
    loaded = load_detector(name, path)
    assert loaded.weights.kind == kind and loaded.weights.trained_on == "noise"
    faces = torch.rand(3, 3, 224, 224)
    with torch.inference_mode():
        logits, again = loaded.network(faces), load_detector(name, path).network(faces)
    assert logits.shape == (3,) and torch.equal(logits, again) and logits.std() > 0
    assert not loaded.network.training and not any(
        p.requires_grad for p in loaded.network.encoder.parameters()
    )


def test_the_layer_norms_of_the_file_are_those_that_are_used(small_clip, tmp_path):
    network = face_encoder.TunedClip(64, 2)
    with torch.no_grad():
        for norm in network.norms.values():
            norm.weight.fill_(2.0)
    path = on_clip("clip-tuned", tmp_path / "own.safetensors", {"width": 64, "depth": 2}, network)
    loaded = load_detector("edited-faces", path).network
    assert all(
        torch.all(norm == 2)
        for name, norm in loaded.encoder.named_parameters()
        if "norm" in name and "weight" in name
    )
    assert torch.all(small_clip.norm.weight == 1)


@pytest.mark.parametrize("name", ON_CLIP)
@pytest.mark.parametrize("change", ["shape", "absent", "more", "other"])
def test_tensors_of_another_shape_are_refused_by_name_and_shape(small_clip, tmp_path, name, change):
    from safetensors.torch import save_file

    kind, settings = ON_SMALL_CLIP[name]
    path = on_clip(kind, tmp_path / "own.safetensors", settings)
    with safetensors.safe_open(path, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    width = tensors["head.weight"].shape[1]
    if change == "shape":
        tensors["head.weight"] = torch.zeros(1, 70)
    elif change == "absent":
        del tensors["head.weight"]
    elif change == "more":
        tensors["tail.weight"] = torch.zeros(1, 70)
    else:
        tensors = {
            key: tensor.double() if key == "head.bias" else torch.zeros(3) for key, tensor in tensors.items()
        }
    save_file(tensors, tmp_path / "own.safetensors", header)
    with pytest.raises(InputError) as raised:
        load_detector(name, path)
    said = str(raised.value)
    assert "\n" not in said and str(path) in said
    if change == "shape":
        assert f"'head.weight', which is (1, 70) in the file, but (1, {width}) in the network" in said
    assert change != "more" or "'tail.weight'" in said
    assert change == "more" or "head" in said or "norms" in said


def test_layer_norms_of_another_encoder_are_refused_by_name_and_shape(small_clip, tmp_path):
    wider = on_clip("clip-tuned", tmp_path / "wide.safetensors", {"width": 96, "depth": 2})
    with pytest.raises(
        InputError, match=r"'norm_pre.weight' is \(96,\) in the file, but \(64,\) in the network"
    ):
        load_detector("edited-faces", wider)
    deeper = on_clip("clip-tuned", tmp_path / "deep.safetensors", {"width": 64, "depth": 3})
    with pytest.raises(InputError, match=r"'blocks.2.norm1.weight' is .* in the file, but absent"):
        load_detector("edited-faces", deeper)
    probe = on_clip("clip-probe", tmp_path / "probe.safetensors", {"width": 64, "blocks": [0, 7]})
    with pytest.raises(InputError, match=r"reads the blocks \[0, 7\], but the encoder has 2"):
        load_detector("generated-faces", probe)


@pytest.mark.parametrize("name", ON_CLIP)
def test_without_clip_and_without_a_network_a_sentence_says_what_to_fetch(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError) as raised:
        load_detector(name)
    said = str(raised.value)
    assert said.startswith(f"The detector {name!r} needs the weights of 'clip-vit-b16'")
    assert "`deepfake-nb weights fetch clip-vit-b16`" in said and "\n" not in said


@pytest.mark.slow
def test_the_shipped_frame_detector_separates_new_people_from_crude_swaps():
    from deepfake_nb.evaluation.metrics import auc
    from deepfake_nb.networks.frame_network import cut_face
    from deepfake_nb.people.heads import random_identity
    from deepfake_nb.people.rendering import render_stills
    from deepfake_nb.people.swapping import SourceFace, swap_face

    stills = render_stills([random_identity(10**6 + seed) for seed in range(8)], "studio", size=160)
    shots = list(zip(stills.images, stills.landmarks, strict=True))
    swaps = [swap_face(i, p, SourceFace(*shots[n - 1]), quality="crude")[0] for n, (i, p) in enumerate(shots)]
    pictures = [*stills.images, *swaps]
    crops = [cut_face(i, None, p) for i, p in zip(pictures, [*stills.landmarks] * 2, strict=True)]
    with torch.inference_mode():
        logits = load_detector("rendered-faces").network(
            torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
        )
    assert logits.shape == (16,) and auc([0] * 8 + [1] * 8, logits.numpy()) > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "hf-hub:somebody/something"},
        {"backbone": "https://example.org/net"},
        {"backbone": "resnet10t", "checkpoint_path": "/etc/passwd"},
        {"backbone": "resnet10t", "channels": "wide"},
        {"backbone": "resnet10t", "channels": [32, 64]},
        {"backbone": ["resnet10t"]},
    ],
)
def test_a_header_cannot_make_timm_load_anything(tmp_path, monkeypatch, settings):
    from deepfake_nb.networks.frame_network import FrameNetwork

    monkeypatch.setattr("requests.sessions.Session.request", None)
    network = FrameNetwork("resnet10t", [8, 8, 8, 8], 8)
    weights.save_network(tmp_path / "a.safetensors", "frame-network", network, "nothing", settings)
    with pytest.raises(InputError) as raised:
        check_file(tmp_path / "a.safetensors")
    assert "\n" not in str(raised.value)


def test_a_detector_of_ones_own_needs_one_line(tmp_path, monkeypatch):
    from deepfake_nb.networks.frame_network import FrameNetwork

    network, path = FrameNetwork("lcnet_050").eval(), tmp_path / "own.safetensors"
    weights.save_network(path, "frame-network", network, "noise", {"backbone": "lcnet_050"}, size=96)
    monkeypatch.setitem(weights.REGISTRY, "own", weights.own_weights("own", path))
    loaded = load_detector("own")
    assert (loaded.weights.published, loaded.weights.trained_on) == ("own", "noise")
    assert (weights.REGISTRY["own"].input_size, weights.REGISTRY["own"].normalisation) == (
        96,
        "divided by 255",
    )
    weights.save_network(path, "frame-network", network, "noise", {"backbone": "lcnet_050"})
    with pytest.raises(InputError, match="which size of input"):
        weights.own_weights("own", path)


@pytest.mark.parametrize(
    ("kind", "detectors"), [("picture", {"rendered-faces"}), ("video", {"rendered-clips", "rendered-faces"})]
)
def test_the_shipped_calibrations_belong_to_the_shipped_weights(kind, detectors):
    from deepfake_nb.evaluation.calibration import read_calibrations

    (calibration,) = read_calibrations(weights.shipped_file(f"calibration-{kind}.json")).values()
    assert calibration.kind == kind and calibration.n_people >= 60 and calibration.familiarity
    assert calibration.misfit({name: weights.REGISTRY[name].sha256 for name in detectors}) == ""
    assert calibration.weights.keys() == detectors and "no living person" in calibration.words
    sure = {name: calibration.probability({name: 0.999}).value for name in detectors}
    assert all(0.6 < value < 1 for value in sure.values()), sure
    assert calibration.threshold(sorted(detectors), 0.001).rate == pytest.approx(
        1 / (calibration.n_people + 1)
    )
