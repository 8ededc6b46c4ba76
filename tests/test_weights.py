"""Published weights: agreement with the released files, other layouts of Keras files, and files that lie."""

import json
import math
import pickle
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import torch
from parity import drawn, filled, fixture
from PIL import Image

from deepfake_nb.networks import weights
from deepfake_nb.networks.mesonet import Meso4, MesoInception4
from deepfake_nb.networks.weights import (
    check_file,
    fetch,
    import_mesonet,
    import_state_dict,
    load_detector,
    read_state_dict,
)
from deepfake_nb.study.files import InputError, UsageError

MESO4_SHAPES = {
    "conv2d": [(3, 3, 3, 8), (5, 5, 8, 8), (5, 5, 8, 16), (5, 5, 16, 16)],
    "batch_normalization": [8, 8, 16, 16],
    "dense": [(1024, 16), (16, 1)],
}
RELEASED = {
    "Meso4_DF": "meso4-df",
    "Meso4_F2F": "meso4-f2f",
    "MesoInception_DF": "mesoinception-df",
    "MesoInception_F2F": "mesoinception-f2f",
}


def random_keras_layers(rng):
    """Meso-4 as Keras holds it: layers in the order in which they are applied, with random tensors."""
    layers = {}
    for kind, shapes in MESO4_SHAPES.items():
        for number, shape in enumerate(shapes):
            if kind == "batch_normalization":
                gamma, beta, mean = rng.normal(size=(3, shape)) * 0.3 + [[1], [0], [0.2]]
                tensors = {"gamma": gamma, "beta": beta, "moving_mean": mean}
                tensors["moving_variance"] = rng.uniform(0.002, 1, size=shape)
            else:
                kernel = rng.normal(size=shape) / math.sqrt(np.prod(shape[:-1]))
                tensors = {"kernel": kernel, "bias": rng.normal(size=shape[-1]) * 0.1}
            layers[kind, number] = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return layers


def write_keras(path, layers, *, first=0, whole_model=False, short_names=False, as_text=False):
    """Write layers as Keras 2 does (weights alone), or as a whole model, or with the names of Keras 3."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        names = []
        for (kind, number), tensors in layers.items():
            count = first + number
            layer = f"{kind}_{count}" if count else kind
            group = root.create_group(layer)
            keys = [name if short_names else f"{layer}/{name}:0" for name in tensors]
            for key, tensor in zip(keys, tensors.values(), strict=True):
                group[key] = tensor
            group.attrs["weight_names"] = keys if as_text else [key.encode() for key in keys]
            names.append(layer)
        root.create_group("flatten").attrs["weight_names"] = np.zeros(0)
        names.append("flatten")
        root.attrs["layer_names"] = names if as_text else [name.encode() for name in names]
    return path


def keras_meso4(layers, image):
    """P(real) of Meso-4 by NumPy alone, written from Keras' documentation; `image` (256, 256, 3) in [0, 1]."""
    maps = image.astype(np.float64)
    for number, (kernel_side, pooling) in enumerate([(3, 2), (5, 2), (5, 2), (5, 4)]):
        conv, norm = layers["conv2d", number], layers["batch_normalization", number]
        margin = kernel_side // 2
        padded = np.pad(maps, ((margin, margin), (margin, margin), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel_side, kernel_side), axis=(0, 1))
        maps = np.einsum("hwcij,ijco->hwo", windows, conv["kernel"], optimize=True) + conv["bias"]
        maps = np.maximum(maps, 0)
        scale = norm["gamma"] / np.sqrt(norm["moving_variance"] + 1e-3)
        maps = (maps - norm["moving_mean"]) * scale + norm["beta"]
        rows, columns, channels = maps.shape
        blocks = maps.reshape(rows // pooling, pooling, columns // pooling, pooling, channels)
        maps = blocks.max((1, 3))
    hidden = maps.reshape(-1) @ layers["dense", 0]["kernel"] + layers["dense", 0]["bias"]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    return 1 / (1 + np.exp(-float((hidden @ layers["dense", 1]["kernel"] + layers["dense", 1]["bias"])[0])))


@pytest.fixture(scope="module")
def keras_layers():
    return random_keras_layers(np.random.default_rng(0))


@pytest.fixture(scope="module")
def keras_file(keras_layers, tmp_path_factory):
    return write_keras(tmp_path_factory.mktemp("keras") / "meso4.h5", keras_layers, first=5)


def score(network, images):
    """P(fake) of images (N, H, W, 3) in [0, 1]."""
    with torch.no_grad():
        return torch.sigmoid(network(torch.from_numpy(np.float32(images)).permute(0, 3, 1, 2))).numpy()


def test_imported_meso4_agrees_with_keras_arithmetic_in_numpy(keras_layers, keras_file):
    images = np.random.default_rng(1).uniform(size=(3, 256, 256, 3))
    expected = [1 - keras_meso4(keras_layers, image) for image in images]
    assert np.ptp(expected) > 1e-3, "the images must not all get the same score, or the comparison is void"
    assert score(import_mesonet(keras_file), images) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "layout", [{"whole_model": True}, {"first": 99}, {"short_names": True, "as_text": True}]
)
def test_other_layouts_of_the_same_tensors_give_the_same_network(keras_layers, keras_file, tmp_path, layout):
    other = write_keras(tmp_path / "other.h5", keras_layers, **layout)
    images = np.random.default_rng(2).uniform(size=(1, 256, 256, 3))
    assert score(import_mesonet(other), images) == pytest.approx(
        score(import_mesonet(keras_file), images), abs=1e-6
    )


def test_layers_beyond_nine_are_sorted_as_numbers(keras_layers, keras_file, tmp_path):
    reversed_order = dict(reversed(keras_layers.items()))
    other = write_keras(tmp_path / "other.h5", reversed_order, first=8)
    images = np.random.default_rng(2).uniform(size=(1, 256, 256, 3))
    assert score(import_mesonet(other), images) == pytest.approx(
        score(import_mesonet(keras_file), images), abs=1e-6
    )


def layers_drawn_from_their_names(shapes):
    """Layers of a Keras network, in the order in which they are created."""
    layers = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.partition("/")
        kind, _, number = layer.rpartition("_")
        layers.setdefault((kind, int(number)), {})[leaf] = filled(name, shape).numpy()
    return layers


@pytest.mark.parametrize("kind", ["meso4", "mesoinception4"])
def test_imported_networks_output_what_keras_does(kind, tmp_path):
    published = fixture("mesonet")[kind]
    file = write_keras(tmp_path / "drawn.h5", layers_drawn_from_their_names(published["keys"]))
    assert check_file(file).kind == kind
    images = drawn("input0", published["inputs"]["input0"]).numpy()
    assert 1 - score(import_mesonet(file), images) == pytest.approx(published["real"], abs=1e-5)


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_output_what_their_authors_network_does(name, shared_data, shared_fixtures):
    published = json.loads((shared_fixtures / "mesonet_scores.json").read_text())[name]
    network = import_mesonet(shared_data / "mesonet" / "weights" / f"{name}.h5")
    assert len(published) == 4
    for picture, real in published.items():
        image = Image.open(shared_data / "mesonet" / picture).convert("RGB").resize((256, 256), Image.NEAREST)
        assert score(network, np.asarray(image)[None] / 255) == pytest.approx(1 - real, abs=1e-3), picture


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_recognised(name, shared_data):
    file = shared_data / "mesonet" / "weights" / f"{name}.h5"
    report = check_file(file)
    assert report.published == RELEASED[name]
    entry = weights.REGISTRY[report.published]
    assert (report.kind, report.size, report.licence) == (entry.kind, entry.size, "Apache-2.0")
    assert entry.url.endswith(f"/{name}.h5")


def test_no_layer_of_meso4_shares_its_batch_norm(keras_file):
    norms = [
        module for module in import_mesonet(keras_file).modules() if isinstance(module, torch.nn.BatchNorm2d)
    ]
    assert len({norm.running_var.data_ptr() for norm in norms}) == 4
    assert all(norm.eps == 1e-3 for norm in norms)


def test_state_dicts_go_round_through_files(tmp_path):
    from safetensors.torch import save_file

    network = MesoInception4().eval()
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    torch.save(
        {"epoch": 1, "model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "a.pt"
    )
    torch.save(network.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pt", "old.pt"):
        assert check_file(tmp_path / name).kind == "mesoinception4", name
        loaded = load_detector("mesoinception-df", tmp_path / name)
        assert "unknown" in loaded.weights.trained_on
        assert torch.equal(loaded.network.head.weight, network.head.weight)


def test_a_new_kind_is_one_line(monkeypatch):
    monkeypatch.setitem(weights.KINDS, "tiny", "torch.nn:Identity")
    assert isinstance(import_state_dict("tiny", {}), torch.nn.Identity)


def test_unknown_kinds_and_names_are_refused():
    with pytest.raises(InputError, match="There are: meso4, mesoinception4"):
        import_state_dict("altfreezing-of-tomorrow", {})
    for call in (fetch, load_detector):
        with pytest.raises(UsageError, match="Choose one of: meso4-df"):
            call("meso4")


def test_fetch_takes_a_file_from_the_cache_and_refuses_another(tmp_path, monkeypatch, shared_data):
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path))
    monkeypatch.setattr("requests.sessions.Session.request", offline)
    (tmp_path / "weights").mkdir()
    cached = tmp_path / "weights" / "Meso4_DF.h5"
    cached.write_bytes((shared_data / "mesonet" / "weights" / "Meso4_DF.h5").read_bytes())
    assert fetch("meso4-df") == cached
    cached.write_bytes(b"something else")
    with pytest.raises(InputError, match="--weights"):
        fetch("meso4-df")


def offline(*_, **__):
    import requests

    raise requests.exceptions.ConnectionError("no network")


def test_without_a_network_fetch_says_how_to_get_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path))
    monkeypatch.setattr("requests.sessions.Session.request", offline)
    with pytest.raises(InputError) as raised:
        load_detector("meso4-df")
    sentence = str(raised.value)
    assert "https://raw.githubusercontent.com/DariusAf/MesoNet/master/weights/Meso4_DF.h5" in sentence
    assert "--weights" in sentence and "\n" not in sentence


def test_a_download_that_is_another_file_is_not_kept(tmp_path, monkeypatch):
    def give_something(_, url, output_file, *__, **___):
        with open(output_file, "wb") as file:
            file.write(b"<html>moved</html>")

    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path))
    monkeypatch.setattr("pooch.HTTPDownloader.__call__", give_something)
    with pytest.raises(InputError, match="SHA-256 differs"):
        fetch("meso4-df")
    assert list((tmp_path / "weights").iterdir()) == []


def test_what_a_file_of_others_says_in_its_header_is_not_believed(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "theirs.safetensors"
    save_file(Meso4().state_dict(), file, {"format": "pt", "trained_on": "everything"})
    report = check_file(file)
    assert (report.kind, report.settings, report.usage) == ("meso4", {}, {})
    assert "unknown" in report.trained_on


@pytest.mark.parametrize("header", ["{", "[]", "null", '{"kind": "meso4"}', '"meso4"'])
def test_a_damaged_header_of_ours_is_reported(tmp_path, header):
    from safetensors.torch import save_file

    file = tmp_path / "ours.safetensors"
    save_file(Meso4().state_dict(), file, {weights.HEADER: header})
    with pytest.raises(InputError) as raised:
        check_file(file)
    assert str(file) in str(raised.value)


def test_a_network_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match="No space left"):
        weights.save_network(tmp_path / "a.safetensors", "meso4", Meso4(), "nothing")
    assert list(tmp_path.iterdir()) == []


class Intruder:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "model"])
def test_nothing_in_a_weight_file_is_run(tmp_path, how):
    trap, file = tmp_path / "was-here", tmp_path / "weights.pt"
    if how == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": Intruder(trap)}))
    else:
        content = (
            torch.nn.Linear(2, 2) if how == "model" else {"state_dict": Intruder(trap), "a": torch.ones(1)}
        )
        torch.save(content, file, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(InputError, match="Python objects besides tensors"):
        check_file(file)
    assert not trap.exists()


def bad_files(folder, keras_layers):
    """Files that are not usable weights, by what is wrong with them."""
    files = {
        name: folder / name for name in ("text.h5", "empty.pt", "cut.h5", "cut.pt", "numbers.pt", "other.h5")
    }
    files["text.h5"].write_text("I am not a weight file.")
    files["empty.pt"].touch()
    whole = write_keras(folder / "whole.h5", keras_layers)
    files["cut.h5"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    torch.save(Meso4().state_dict(), folder / "whole.pt")
    files["cut.pt"].write_bytes((folder / "whole.pt").read_bytes()[:5000])
    torch.save([1, 2, 3], files["numbers.pt"])
    with h5py.File(files["other.h5"], "w") as file:
        file["table"] = np.arange(3.0)
    (folder / "short.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{" + b"x" * 40)
    return [*files.values(), folder / "short.safetensors", folder / "absent.h5", folder]


def test_files_that_are_no_weights_give_a_sentence(tmp_path, keras_layers):
    for file in bad_files(tmp_path, keras_layers):
        with pytest.raises(InputError) as raised:
            check_file(file)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value), file
        with pytest.raises(InputError):
            load_detector("meso4-df", file)


def zipped(path, **contents):
    """A ZIP archive of members with their contents."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def keras_3_weights(path):
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 8), np.float32)
        file["layers/conv2d/vars/1"] = np.zeros(8, np.float32)


def onnx_file(path, **options):
    from onnx import TensorProto, helper, numpy_helper, save

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.zeros((4, 4), np.float32), "head.weight")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "head.weight"], ["y"])], "small", *[[e] for e in ends], stored)  # fmt: skip
    save(helper.make_model(graph, **options), str(path))


def rewritten(source, path, **changes):
    """A copy of a ZIP archive with other contents of some members, by the last part of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.rpartition("/")[2], old.read(name)))


def write_whole_file(path, how):
    """A whole file that is not a checkpoint to be read here."""
    network, plain = torch.nn.Linear(4, 4), path.with_name("plain.pth")
    torch.save(network.state_dict(), plain)
    keras_3_weights(path.with_name("keras_3"))
    if how in ("scripted", "traced"):
        program = (
            torch.jit.script(network) if how == "scripted" else torch.jit.trace(network, torch.ones(1, 4))
        )
        program.save(str(path))
    elif how == "npz":
        np.savez(
            path.with_suffix(".npz"), kernel=np.zeros((3, 3), np.float32), objects=np.array([{}], object)
        )
        path.with_suffix(".npz").rename(path)
    elif how == "npy":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        path.with_suffix(".npy").rename(path)
    elif how == "keras":
        members = {"metadata.json": "{}", "config.json": "{}"}
        zipped(path, **members, **{"model.weights.h5": path.with_name("keras_3").read_bytes()})
    elif how == "keras weights":
        keras_3_weights(path)
    elif how == "table":
        with h5py.File(path, "w") as file:
            file["table"] = np.arange(3.0)
    elif how == "onnx":
        onnx_file(path, producer_name="pytorch", producer_version="2.1")
    elif how == "onnx without a producer":
        onnx_file(path)
    elif how == "saved model":
        path.write_bytes(b"\x08\x01\x12\xd0\xa0\x01\x0a\xd3\x03" + b"\x00" * 40)
    elif how == "zip":
        zipped(
            path,
            **{"README.txt": "", "release/model.PTH": plain.read_bytes(), "__MACOSX/release/._model.PTH": ""},
        )
    elif how == "zip of two":
        zipped(path, **{"a.pth": plain.read_bytes(), "b.safetensors": ""})
    elif how == "zip of pictures":
        zipped(path, **{"a.png": "", "b.png": ""})
    elif how == "zipped anew":
        zipped(path, **{"data.pkl": "", "data/0": "", "version": "3"})
    elif how == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(plain, "model.pth")
    elif how == "tar.gz":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(plain, "model.pth")
    elif how == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n")
    elif how == "web page":
        path.write_text("<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>")
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"head.weight": np.zeros((4, 4))}))
    elif how == "arrays":
        torch.save({"model": {"head.weight": np.zeros((4, 4)), "head.bias": np.zeros(4)}}, path)
    elif how == "arrays, legacy":
        torch.save({"head.weight": np.zeros((4, 4))}, path, _use_new_zipfile_serialization=False)
    elif how == "later version":
        rewritten(plain, path, version="99\n")


WHOLE_FILES = {
    "scripted": ("TorchScript", "torch.jit.load"),
    "traced": ("TorchScript", "state_dict"),
    "npz": (r"NumPy archive .* of 2 arrays such as 'kernel' \(3, 3\) and 'objects'", "torch.from_numpy"),
    "npy": ("a single NumPy array", "torch.from_numpy"),
    "keras": (r"a model of Keras 3 \(.keras\)", "older layout"),
    "keras weights": ("a weight file of Keras 3", "older layout"),
    "table": ("an HDF5 file, but not one of Keras: it holds 'table'", "save_weights wrote"),
    "onnx": (
        r"an ONNX file of 1 nodes and 1 tensors such as 'head.weight' \(4, 4\), written by pytorch",
        "made from",
    ),
    "onnx without a producer": ("an ONNX file .* written by an unknown program", "made from"),
    "saved model": ("a SavedModel of TensorFlow", "made from"),
    "zip": ("a ZIP archive around 'release/model.PTH'\\.", "Unpack it"),
    "zip of two": ("a ZIP archive around 'a.pth' and 1 more", "Unpack it"),
    "zip of pictures": ("a ZIP archive without a weight file; it holds 'a.png', 'b.png'", "weights list"),
    "zipped anew": ("unpacked and zipped again", "as it was released"),
    "tar": ("a TAR archive", "Unpack it"),
    "tar.gz": ("compressed with gzip", "Unpack it"),
    "pointer": ("a pointer of Git LFS", "git lfs pull"),
    "web page": ("a web page in place of the file", "Download"),
    "pickle": ("a plain pickle", "safetensors file"),
    "arrays": (
        r"2 NumPy arrays in place of tensors, such as 'head.weight' \(4, 4\) and 'head.bias'",
        "torch.from_numpy",
    ),
    "arrays, legacy": ("1 NumPy arrays in place of tensors", "torch.from_numpy"),
    "later version": ("is whole, but PyTorch .* cannot read it here: .*version 99", "update the library"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("how", WHOLE_FILES)
def test_a_whole_file_of_another_format_is_named(tmp_path, how):
    file, (what, instead) = tmp_path / "weights.bin", WHOLE_FILES[how]
    write_whole_file(file, how)
    for call in (check_file, read_state_dict, lambda path: load_detector("meso4-df", path)):
        if call is read_state_dict and how in ("keras weights", "table"):
            continue
        with pytest.raises(InputError, match=what) as raised:
            call(file)
        said = str(raised.value)
        assert str(file) in said and instead in said and "\n" not in said
        assert "damaged" not in said and "cut short" not in said


@pytest.mark.parametrize("how", ["torch", "legacy", "safetensors", "keras", "npz"])
def test_a_cut_file_is_said_to_be_cut(tmp_path, keras_layers, how):
    from safetensors.torch import save_file

    whole, state_dict = tmp_path / "whole", Meso4().state_dict()
    if how == "keras":
        write_keras(whole, keras_layers)
    elif how == "safetensors":
        save_file(state_dict, whole)
    elif how == "npz":
        np.savez(tmp_path / "a.npz", kernel=np.zeros(3))
        (tmp_path / "a.npz").rename(whole)
    else:
        torch.save(state_dict, whole, _use_new_zipfile_serialization=how == "torch")
    content = whole.read_bytes()
    for length in (len(content) - 10, len(content) * 3 // 4):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(InputError, match="cut short"):
            check_file(tmp_path / "cut")


def test_keras_tensors_that_are_no_weights_are_refused_without_calling_the_file_damaged(
    tmp_path, keras_layers
):
    for name, values in (("whole numbers", np.zeros(8, np.int64)), ("embedding", None)):
        file = write_keras(tmp_path / "odd.h5", keras_layers)
        with h5py.File(file, "r+") as opened:
            group = opened["conv2d"]["conv2d"]
            del group["bias:0"]
            if values is None:
                group.create_dataset("bias:0", (60_000_000,), np.float32)
            else:
                group["bias:0"] = values
        with pytest.raises(
            InputError, match=r"'conv2d/bias:0' (holds int64|has 60,000,000 values)"
        ) as raised:
            check_file(file)
        assert "cut short" not in str(raised.value), name


def test_a_link_to_the_model_in_another_file_is_not_followed(tmp_path, keras_layers):
    write_keras(tmp_path / "other.h5", keras_layers)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink(tmp_path / "other.h5", "/")
    with pytest.raises(InputError, match="no list of layers"):
        check_file(tmp_path / "link.h5")


@pytest.mark.slow
def test_a_network_under_other_names_is_known_by_its_shapes(tmp_path):
    tensors = enumerate(MesoInception4().state_dict().values())
    torch.save({f"features.{number}": tensor for number, tensor in tensors}, tmp_path / "named.pth")
    nearest = check_file(tmp_path / "named.pth").nearest
    assert (
        "the shapes are those of 'mesoinception4' (100%), but the names are others: 'features.0'" in nearest
    )


def test_a_file_like_no_network_has_no_nearest_one(tmp_path):
    torch.save({"weight": torch.zeros(3, 5)}, tmp_path / "linear.pth")
    report = check_file(tmp_path / "linear.pth")
    assert report.nearest == "" and "nearest" not in dict(report.items())


def test_the_nearest_network_is_named_for_a_keras_file_with_a_layer_too_many(tmp_path, keras_layers):
    wide = {key: tensors for key, tensors in keras_layers.items() if key != ("batch_normalization", 3)}
    wide["dense", 2] = {"kernel": np.zeros((16, 7), np.float32), "bias": np.zeros(7, np.float32)}
    file = write_keras(tmp_path / "wide.h5", wide)
    said = check_file(file).nearest
    assert said.startswith(
        "the nearest known network is 'meso4', but it lacks 4 tensors such as BatchNorm2d "
    )
    assert "it has besides 2 tensors such as Linear kernel (16, 7)" in said
    for call in (import_mesonet, lambda path: load_detector("meso4-df", path)):
        with pytest.raises(InputError, match="the nearest known network is 'meso4', but it lacks 4 tensors"):
            call(file)


def test_another_network_is_named(tmp_path, keras_file):
    with pytest.raises(InputError, match=r"needs a 'mesoinception4' network, but .* holds a 'meso4' network"):
        load_detector("mesoinception-df", keras_file)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    assert check_file(tmp_path / "linear.pt").kind is None
    with pytest.raises(InputError, match="holds no network that this version knows"):
        load_detector("meso4-df", tmp_path / "linear.pt")
    with pytest.raises(InputError, match=r"lacks .* tensors"):
        import_state_dict("meso4", read_state_dict(tmp_path / "linear.pt"))


def test_a_keras_file_of_another_width_is_refused(tmp_path, keras_layers):
    wide = dict(keras_layers)
    wide["dense", 0] = {"kernel": np.zeros((4096, 16), np.float32), "bias": np.zeros(16, np.float32)}
    with pytest.raises(InputError, match="neither Meso-4 nor MesoInception-4"):
        import_mesonet(write_keras(tmp_path / "wide.h5", wide))


@pytest.mark.parametrize("link", ["external", "soft", "store"])
def test_hdf5_links_are_not_followed(tmp_path, keras_layers, link):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((3, 3, 3, 8), np.float32)
    file = write_keras(tmp_path / "linked.h5", keras_layers)
    with h5py.File(file, "r+") as opened:
        group = opened["conv2d"]["conv2d"]
        del group["kernel:0"]
        if link == "external":
            group["kernel:0"] = h5py.ExternalLink(secret, "kernel")
        elif link == "soft":
            opened["elsewhere"] = np.zeros((3, 3, 3, 8), np.float32)
            group["kernel:0"] = h5py.SoftLink("/elsewhere")
        else:
            store = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            group.create_dataset("kernel:0", (3, 3, 3, 8), np.float32, external=store)
    with pytest.raises(InputError, match=r"points out of the file|not a plain data set"):
        check_file(file)


def test_weights_without_a_known_checksum_are_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path))
    monkeypatch.setattr("requests.sessions.Session.request", None)
    for call in (fetch, load_detector):
        with pytest.raises(InputError) as raised:
            call("xception")
        assert "releases/download/v1.0.1/xception_best.pth" in str(raised.value)
        assert "--weights" in str(raised.value) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuned_checkpoint_with_numbers_of_numpy_beside_it(tmp_path):
    from deepfake_nb.networks.video_resnet import VideoResNet

    tensors = {f"network.resnet.{key}": tensor for key, tensor in VideoResNet().state_dict().items()}
    history = [{"confusion_matrix": np.eye(2), "loss": np.float32(0.5)}]
    content = {"model_state_dict": tensors, "val_accuracy": np.float64(0.8), "history": history}
    torch.save(content, tmp_path / "fine_tuned.pth")
    assert check_file(tmp_path / "fine_tuned.pth").kind == "altfreezing"
    network = import_state_dict("altfreezing", content)
    assert not network.training and network.num_features == 2048
