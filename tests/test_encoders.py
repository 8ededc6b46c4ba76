"""Encoders from wheels: every tensor in its place, a cat called a cat, and files of another network refused."""

import numpy as np
import pytest
import timm
import torch
from parity import drawn, filled, fixture
from PIL import Image
from safetensors.torch import save_file

from deepfake_nb.networks import encoders
from deepfake_nb.networks.encoders import (
    CLIP_MEAN,
    CLIP_STD,
    clip_input,
    clip_names,
    clip_vit_b16,
    layer_norms,
    load_clip,
    load_layer_norms,
)
from deepfake_nb.networks.weights import REGISTRY, check_file, import_state_dict, read_state_dict
from deepfake_nb.study.files import InputError

LITE = ["efficientnet-lite0", "efficientnet-lite2"]
CATS = range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian


@pytest.fixture(scope="module")
def clip_file(encoder_files):
    return encoder_files("clip-vit-b16")


@pytest.fixture(scope="module")
def clip(clip_file):
    return load_clip(clip_file)


# --- EfficientNet-Lite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LITE)
def test_an_efficientnet_outputs_what_the_released_code_does(name, one_thread):
    released = fixture(name)
    network = import_state_dict(name, {key: filled(key, shape) for key, shape in released["keys"].items()})
    with torch.inference_mode():
        logits = network(drawn("input0", released["inputs"]["input0"]))[:, :8]
    assert logits.numpy() == pytest.approx(np.array(released["outputs"]), abs=1e-4)


@pytest.mark.parametrize("name", LITE)
def test_a_cat_is_called_a_cat(name, encoder_files, one_thread):
    """Top-1 of the photograph of a cat that comes with scikit-image."""
    from skimage import data

    network, side = import_state_dict(name, read_state_dict(encoder_files(name))), REGISTRY[name].input_size
    photograph = Image.fromarray(data.chelsea())
    left, side_of_square = (photograph.width - photograph.height) // 2, photograph.height
    square = photograph.crop((left, 0, left + side_of_square, side_of_square)).resize(
        (side, side), Image.BICUBIC
    )
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        classes = network(pixels).softmax(1)[0]
    assert int(classes.argmax()) in CATS
    assert classes[list(CATS)].sum() > 0.7


@pytest.mark.parametrize("name", LITE)
def test_an_efficientnet_file_is_recognised(name, encoder_files):
    report = check_file(encoder_files(name))
    assert (report.kind, report.published, report.licence) == (name, name, "Apache-2.0")
    assert "no detector" in report.trained_on


def drawn_lite0():
    """The tensors of a release, each drawn from its name."""
    return {name: filled(name, shape) for name, shape in fixture("efficientnet-lite0")["keys"].items()}


def test_a_wrapped_release_is_the_same_and_one_missing_tensor_is_named():
    released = drawn_lite0()
    network = import_state_dict("efficientnet-lite0", released)
    again = import_state_dict("efficientnet-lite0", {f"module.{name}": t for name, t in released.items()})
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in again.state_dict().items())
    for name in ("_blocks.3._bn1.running_mean", "_fc.weight"):
        cut = {key: tensor for key, tensor in released.items() if key != name}
        with pytest.raises(InputError, match="it lacks 1 tensors such as"):
            import_state_dict("efficientnet-lite0", cut)
    with pytest.raises(InputError, match=r"has besides 1 tensors such as '_blocks\.16\._bn1\.weight'"):
        import_state_dict("efficientnet-lite0", released | {"_blocks.16._bn1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="not those of a 'efficientnet-lite2' network"):
        import_state_dict("efficientnet-lite2", released)


def test_tensors_that_have_the_names_of_timm_already():
    network = import_state_dict("efficientnet-lite0", drawn_lite0())
    assert import_state_dict("efficientnet-lite0", network.state_dict()).num_classes == 1000


# --- CLIP -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clip_outputs_what_openais_code_does(one_thread):
    released, network = fixture("clip"), clip_vit_b16().eval()
    drawn_tensors = {key: filled(key, shape) for key, shape in released["keys"].items()}
    network.load_state_dict(clip_names(drawn_tensors), strict=True)
    with torch.inference_mode():
        outputs = network(drawn("input0", released["inputs"]["input0"]))[:, :8]
    assert outputs.numpy() == pytest.approx(np.array(released["outputs"]), abs=1e-3)


def test_clip_is_whole_and_in_eval_mode(clip):
    assert not clip.training and clip.num_classes == 512 and not clip.head.bias.any()
    assert all(
        parameter.dtype == torch.float32 and parameter.requires_grad for parameter in clip.parameters()
    )
    assert not any(tensor.is_meta for tensor in [*clip.parameters(), *clip.buffers()])


@pytest.mark.slow
def test_clip_agrees_with_its_int8_graph(clip, clip_file, shared_data):
    """One face at a time, as the scales of the graph's activations depend on all images of a batch."""
    import onnxruntime

    files = sorted((shared_data / "real_faces").rglob("*.jpg"))[::125]
    crops = [Image.open(file).convert("RGB").crop((13, 13, 237, 237)) for file in files]
    images = clip_input(np.stack([np.asarray(crop) for crop in crops]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(clip_file), options)
    theirs = [session.run(["image_embeds"], {"pixel_values": image[None].numpy()})[0] for image in images]
    with torch.inference_mode():
        ours = clip(images)
    cosines = torch.cosine_similarity(ours, torch.from_numpy(np.concatenate(theirs)))
    assert len(files) == 12 and ours.shape == (12, 512)
    assert cosines.mean() == pytest.approx(0.978, abs=0.008) and cosines.min() > 0.94
    centred = ours - ours.mean(0)
    assert torch.cosine_similarity(centred, centred.roll(1, 0)).mean() < 0.5, "all faces look alike"


def test_the_file_of_clip_is_recognised(clip_file):
    report = check_file(clip_file)
    assert (report.format, report.kind, report.published) == ("onnx", "clip-vit-b16", "clip-vit-b16")
    assert report.licence.startswith("MIT")


def test_clip_from_safetensors_is_the_same(clip, tmp_path):
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    again = load_clip(tmp_path / "clip.safetensors")
    assert all(torch.equal(t, clip.state_dict()[name]) for name, t in again.state_dict().items())
    assert check_file(tmp_path / "clip.safetensors").kind == "clip-vit-b16"
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "clip.safetensors").read_bytes()[:10_000])
    with pytest.raises(InputError, match="is damaged or cut short"):
        load_clip(tmp_path / "cut.safetensors")


def refused(match, path):
    with pytest.raises(InputError, match=match) as raised:
        load_clip(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def small_graph(**changes):
    """An ONNX graph of one quantised product, as the quantiser of onnxruntime writes it."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {
        "w_quantized": rng.integers(-128, 128, (6, 4), dtype=np.int8),
        "w_zero_point": rng.integers(-20, 20, 4, dtype=np.int8),
        "w_scale": rng.uniform(0.01, 0.1, 4).astype(np.float32),
    } | changes
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node(
            "MatMulInteger", ["xq", "w_quantized", "xz", "w_zero_point"], ["q"], "/layer/MatMul_quant"
        ),
        helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "w_scale"], ["s"]),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, c]) for n, c in (("x", 6), ("y", 4))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], stored)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7, producer_name="t"
    )


def test_dequantised_weights_compute_what_the_int8_graph_computes():
    import onnxruntime

    model = small_graph()
    inputs = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    theirs = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": inputs})[0]
    weight = encoders.float_tensors(model.graph)["layer.weight"]
    assert weight.shape == (4, 6) and weight.is_contiguous()
    ours = inputs @ weight.numpy().T
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()  # what rounding the inputs costs
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9999


def test_files_that_are_not_clip_are_refused(tmp_path):
    import onnx

    (tmp_path / "text.onnx").write_text("I am not an ONNX file.")
    (tmp_path / "empty.onnx").touch()
    onnx.save(small_graph(), tmp_path / "other.onnx")
    for name in ("text.onnx", "empty.onnx", "other.onnx"):
        refused("is not the int8 ONNX file of CLIP", tmp_path / name)
    refused("cannot be opened", tmp_path / "absent.onnx")
    refused("cannot be opened", tmp_path)
    with pytest.raises(InputError, match="is not the int8 ONNX file of CLIP"):
        check_file(tmp_path / "other.onnx")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused("does not hold CLIP's ViT-B/16 image encoder: .*Missing key", tmp_path / "other.safetensors")


def test_a_cut_file_of_clip_is_refused(clip_file, tmp_path):
    content = clip_file.read_bytes()
    for length in (len(content) // 2, len(content) - 1):
        (tmp_path / "cut.onnx").write_bytes(content[:length])
        refused("is not the int8 ONNX file of CLIP", tmp_path / "cut.onnx")


def test_tensors_in_other_files_are_not_read(tmp_path):
    import onnx

    model = small_graph()
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="secret", size_threshold=0)
    assert (tmp_path / "secret").exists()
    refused("it keeps tensors in other files", tmp_path / "a.onnx")


def test_clip_input_is_that_of_torchvision():
    from torchvision.transforms.v2.functional import normalize

    crops = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    expected = normalize(torch.from_numpy(crops).permute(0, 3, 1, 2) / 255, CLIP_MEAN, CLIP_STD)
    for given in (crops, torch.from_numpy(crops)):
        assert torch.allclose(clip_input(given), expected, atol=1e-5) and clip_input(given).is_contiguous()
    config = timm.get_pretrained_cfg("vit_base_patch16_clip_quickgelu_224.openai")
    assert (config.mean, config.std) == (CLIP_MEAN, CLIP_STD)
    assert clip_input(crops[:0]).shape == (0, 3, 224, 224)


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 224, 224, 3), np.float32),
        np.zeros((224, 224, 3), np.uint8),
        np.zeros((1, 256, 256, 3), np.uint8),
    ],
)
def test_other_images_are_refused(crops):
    with pytest.raises(InputError, match=r"uint8 images of shape \(N, 224, 224, 3\), not"):
        clip_input(crops)


# --- LayerNorms -----------------------------------------------------------------------------------------------------


@pytest.fixture
def vit():
    """A ViT with a LayerNorm before its blocks, as CLIP has."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, pre_norm=True)


def test_layer_norms_of_clip(clip):
    norms = layer_norms(clip)
    assert len(norms) == 52 and sum(tensor.numel() for tensor in norms.values()) == 39_936
    assert {"norm_pre.weight", "norm.bias", "blocks.11.norm2.weight"} <= set(norms)


def test_layer_norms_go_round(vit, tmp_path):
    from safetensors.torch import load_file

    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    trained = {name: torch.randn_like(tensor) for name, tensor in layer_norms(vit).items()}
    save_file(trained, tmp_path / "norms.safetensors")
    load_layer_norms(vit, load_file(tmp_path / "norms.safetensors"))
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, trained.get(name, before[name])), name
    copies = layer_norms(vit)
    copies["norm.weight"].zero_()
    assert torch.equal(layer_norms(vit)["norm.weight"], trained["norm.weight"]), "copies, not views"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_pre.weight": torch.zeros(32)}, r"'norm_pre.weight' is \(32,\) in the file, but \(24,\)"),
        ({"blocks.1.norm2.bias": None}, r"'blocks.1.norm2.bias' is absent in the file, but \(24,\)"),
        (
            {"blocks.2.norm1.bias": torch.zeros(24)},
            r"'blocks.2.norm1.bias' is \(24,\) in the file, but absent",
        ),
        ({"blocks.0.attn.qkv.bias": torch.zeros(72)}, "'blocks.0.attn.qkv.bias' is .* but absent"),
    ],
)
def test_layer_norms_of_another_encoder_are_refused_as_a_whole(vit, change, words):
    before = layer_norms(vit)
    state = {name: tensor + 1 for name, tensor in before.items()} | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(InputError, match=words) as raised:
        load_layer_norms(vit, state)
    assert "another encoder" in str(raised.value) and "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer_norms(vit).items())
