"""DeepfakeBench's Xception: its outputs, any wrapping of its checkpoint, and what is not taken for it."""

import numpy as np
import pytest
import torch
from parity import drawn, filled, fixture

from deepfake_nb.networks.mesonet import Meso4
from deepfake_nb.networks.weights import check_file, import_state_dict, load_detector
from deepfake_nb.networks.xception import Xception, from_deepfakebench, to_deepfakebench
from deepfake_nb.study.files import InputError


@pytest.fixture(scope="module")
def xception_release():
    """A state dict as DeepfakeBench saves its Xception, each tensor drawn from its name."""
    shapes = {k: tuple(v.shape) for k, v in to_deepfakebench(Xception().state_dict()).items()}
    adjust = "backbone.adjust_channel"
    shapes |= {f"{adjust}.0.weight": (512, 2048, 1, 1), f"{adjust}.0.bias": (512,)}
    shapes |= {f"{adjust}.1.{name}": (512,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {f"{adjust}.1.num_batches_tracked": ()}
    return {name: filled(name, shape) for name, shape in shapes.items()}


def test_xception_outputs_what_deepfakebench_does(xception_release):
    published = fixture("xception")
    assert {k: list(v.shape) for k, v in xception_release.items()} == published["keys"]
    network = import_state_dict("deepfakebench-xception", xception_release)
    assert not network.training
    with torch.inference_mode():
        logits = network(drawn("input0", published["inputs"]["input0"]))
    assert logits.numpy() == pytest.approx(np.array(published["logits"]), abs=1e-3)


@pytest.mark.slow
def test_xception_is_itself_in_any_wrapping(xception_release, tmp_path):
    plain = import_state_dict("deepfakebench-xception", xception_release).state_dict()
    bare = {name.removeprefix("backbone."): tensor for name, tensor in xception_release.items()}
    uncounted = {k: v for k, v in xception_release.items() if not k.endswith("num_batches_tracked")}
    wrappings = {
        "parallel": {f"module.{name}": tensor for name, tensor in xception_release.items()},
        "nested": {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in xception_release.items()}},
        "bare": bare,
        "old": uncounted,
        "half": {n: t.half() if t.is_floating_point() else t for n, t in xception_release.items()},
    }
    for how, content in wrappings.items():
        network = import_state_dict("deepfakebench-xception", content)
        for name, tensor in network.state_dict().items():
            assert torch.allclose(tensor, plain[name], atol=2e-3 if how == "half" else 0), (how, name)
        assert next(network.parameters()).dtype == torch.float32
    torch.save(wrappings["nested"], tmp_path / "nested.pth")
    report = check_file(tmp_path / "nested.pth")
    assert (report.kind, report.published, report.tensors) == ("deepfakebench-xception", None, 283)
    assert load_detector("xception", tmp_path / "nested.pth").weights.kind == "deepfakebench-xception"


def test_names_go_there_and_back(xception_release):
    ours = from_deepfakebench(xception_release)
    assert set(ours) == set(Xception().state_dict())
    back = to_deepfakebench(ours)
    assert set(xception_release) - set(back) == {
        name for name in xception_release if "adjust_channel" in name
    }
    assert all(tensor is xception_release[name] for name, tensor in back.items())


def test_another_xception_is_not_taken_for_this_one(xception_release, tmp_path):
    four_channels = xception_release | {"backbone.conv1.weight": torch.zeros(32, 4, 3, 3)}
    with pytest.raises(InputError, match=r"another shape 1 tensors such as 'conv1\.weight'"):
        import_state_dict("deepfakebench-xception", four_channels)
    cut = {name: tensor for name, tensor in xception_release.items() if "block12" not in name}
    with pytest.raises(InputError, match=r"lacks .* tensors such as 'block12"):
        import_state_dict("deepfakebench-xception", cut)
    with pytest.raises(InputError, match="has besides 1 tensors such as 'head"):
        import_state_dict(
            "deepfakebench-xception", xception_release | {"backbone.head.weight": torch.zeros(1)}
        )
    torch.save(Meso4().state_dict(), tmp_path / "meso.pt")
    with pytest.raises(InputError, match=r"needs a 'deepfakebench-xception' network, but .* a 'meso4'"):
        load_detector("xception", tmp_path / "meso.pt")


def test_the_nearest_network_is_named_for_a_checkpoint_with_a_tensor_too_many_or_too_few(
    tmp_path, xception_release
):
    cut = {name: tensor for name, tensor in xception_release.items() if "block12.rep.1" not in name}
    wide = xception_release | {"backbone.conv1.weight": torch.zeros(32, 4, 3, 3)}
    beside = {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in xception_release.items()}}
    beside["state_dict"] |= {"teacher.0.weight": torch.zeros(5, 2), "teacher.0.bias": torch.zeros(5)}
    expected = {
        "cut": (cut, r"it lacks 2 tensors such as 'block12\.rep\.1\S*' \(\d+.*\) and 'block12"),
        "wide": (
            wide,
            r"another shape 1 tensors such as 'conv1\.weight', which is \(32, 4, 3, 3\) in the file, but \(32, 3",
        ),
        "beside": (
            beside,
            r"has besides 2 tensors such as 'teacher\.0\.weight' \(5, 2\) and 'teacher\.0\.bias' \(5,\)",
        ),
    }
    for name, (content, words) in expected.items():
        file = tmp_path / f"{name}.pth"
        torch.save(content, file)
        report = check_file(file)
        assert report.kind is None and dict(report.items())["nearest"] == report.nearest
        with pytest.raises(InputError, match=rf"the nearest known network is 'deepfakebench-xception', of whose \d+ tensors .*{words}"):  # fmt: skip
            load_detector("xception", file)
