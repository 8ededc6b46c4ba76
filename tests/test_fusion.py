"""Fusion: heads trained together, features kept, networks side by side, printed rates, and one's own images."""

import itertools
import json
import shutil
import time
import urllib.error
import urllib.request

import layouts
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from commands import run_section
from torch import nn
from torch.nn import functional

from deepfake_nb.data.stills import load_cross_stills, load_own_stills, read_split
from deepfake_nb.evaluation.complementarity import (
    correlate_ranks,
    find_pareto_front,
    fuse_scores,
    measure_cka,
)
from deepfake_nb.learning.features import (
    Features,
    HeadStack,
    compute_features,
    digest_pass,
    draw_view,
    extract_features,
    extract_head,
    initialise_heads,
    make_head,
    measure_norms,
    predict_heads,
    train_heads,
)
from deepfake_nb.learning.joint_training import group_by_memory, train_together
from deepfake_nb.learning.training import TrainingSettings, cut_batches
from deepfake_nb.media.images import ArraySet, Augmentation, ImageSet, Normalise
from deepfake_nb.networks import backbones
from deepfake_nb.networks.backbones import (
    Backbone,
    MesoFeatures,
    list_combinations,
    make_backbone,
    parse_combination,
)
from deepfake_nb.networks.mesonet import Meso4
from deepfake_nb.sections.fusion import AUGMENTATION, UNIT, FusionNet, feasible_confusions, network_maker
from deepfake_nb.study.files import InputError, UsageError, random_stream
from deepfake_nb.study.provenance import code_behind

SIDE = 32


@pytest.fixture(scope="module")
def own_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for split, label in itertools.product(("train", "val", "test"), ("real", "fake")):
        layouts.noise(root / "mine" / split / label, 4, size=48)
    for label in ("real", "fake"):
        layouts.noise(root / "others" / label, 5, size=48)
    return root


@pytest.fixture
def pictures(own_sets):
    return read_split(load_own_stills(own_sets / "mine"), "train", SIDE)


def made_features(n=60, views=2, seed=0):
    """Features in which two backbones know something of the label, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    sizes = {"a": 6, "b": 9, "c": 4}
    arrays = {
        name: (rng.normal(size=(views, n, size)) + (name != "c") * 0.8 * labels[:, None]).astype(np.float32)
        for name, size in sizes.items()
    }
    return Features(arrays, {}, 0.0), labels


ALL_OF_THREE = list_combinations(("a", "b", "c"))
SETTINGS = TrainingSettings(
    epochs=12, batch_size=16, learning_rate=0.01, schedule="step", step_epochs=5, seed=4
)


@pytest.fixture(scope="module")
def learnt():
    (train, labels), (val, val_labels) = made_features(), made_features(40, 1, seed=1)
    return train, labels, val, val_labels, train_heads(train, labels, val, val_labels, ALL_OF_THREE, SETTINGS)


@pytest.mark.parametrize("parts", [("a",), ("b", "c"), ("a", "b", "c")])
def test_heads_trained_together_end_as_alone(learnt, parts):
    train, labels, val, val_labels, (heads, logs) = learnt
    alone, log = train_heads(train, labels, val, val_labels, [parts], SETTINGS)
    assert log[parts].best_epoch == logs[parts].best_epoch
    for ours, theirs in zip(
        extract_head(heads, parts).parameters(), extract_head(alone, parts).parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_head_of_the_stack_is_what_a_plain_loop_makes():
    (train, labels), (val, val_labels) = made_features(views=1), made_features(40, 1, seed=1)
    settings = TrainingSettings(epochs=6, batch_size=16, learning_rate=0.01, seed=4)
    parts = ("a", "c")
    heads, logs = train_heads(train, labels, val, val_labels, ALL_OF_THREE, settings, dropout=0.0)
    stack = HeadStack([parts], initialise_heads([parts], {"a": 6, "c": 4}, seed=4))
    head = extract_head(stack, parts).train()
    for dropout in (module for module in head if isinstance(module, nn.Dropout)):
        dropout.p = 0.0
    optimizer, best = torch.optim.Adam(head.parameters(), lr=0.01), (np.inf, None)
    inputs, targets = (
        torch.from_numpy(np.concatenate([train.arrays[n][0] for n in parts], 1)),
        torch.from_numpy(labels).float(),
    )
    tested, val_targets = (
        torch.from_numpy(np.concatenate([val.arrays[n][0] for n in parts], 1)),
        torch.from_numpy(val_labels).float(),
    )
    for epoch in range(1, 7):
        for rows in cut_batches(random_stream(4, "order", epoch).permutation(60), 16, 2):
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(head(inputs[rows])[:, 0], targets[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            logits = head(tested)[:, 0]
        loss = float(functional.binary_cross_entropy_with_logits(logits, val_targets))
        best = min(best, (loss, epoch, logits), key=lambda found: found[0])
    assert logs[parts].best_epoch == best[1]
    ours = predict_heads(heads, val.view(0))[:, ALL_OF_THREE.index(parts)]
    torch.testing.assert_close(ours, best[2], atol=1e-4, rtol=1e-3)


def test_a_head_that_stops_leaves_the_others_as_they_would_be():
    (train, labels), (val, val_labels) = made_features(), made_features(40, 1, seed=1)
    settings = TrainingSettings(epochs=30, batch_size=16, learning_rate=0.02, early_stopping=2, seed=4)
    heads, logs = train_heads(train, labels, val, val_labels, ALL_OF_THREE, settings)
    lengths = {parts: len(log.records) for parts, log in logs.items()}
    assert len(set(lengths.values())) > 1 and all(
        log.stopped for log in logs.values() if len(log.records) < 30
    )
    last = max(lengths, key=lengths.get)
    alone, log = train_heads(train, labels, val, val_labels, [last], settings)
    assert len(log[last].records) == lengths[last]
    torch.testing.assert_close(
        predict_heads(alone, val.view(0))[:, 0], predict_heads(heads, val.view(0))[:, ALL_OF_THREE.index(last)],
        atol=1e-3, rtol=1e-3,
    )  # fmt: skip


def test_heads_separate_the_classes_and_an_uninformed_one_does_not(learnt):
    _, _, val, val_labels, (heads, logs) = learnt
    right = ((predict_heads(heads, val.view(0)) > 0).numpy() == val_labels[:, None]).mean(0)
    assert right[ALL_OF_THREE.index(("a", "b"))] > 0.85 > 0.7 > right[ALL_OF_THREE.index(("c",))]
    rates = [record["learning_rate"] for record in logs[("a",)].records]
    assert rates[4] == 0.01 and rates[5] == pytest.approx(0.001) and rates[10] == pytest.approx(1e-4)


def test_what_heads_cannot_do_together_is_refused(learnt):
    train, labels, val, val_labels, _ = learnt
    for change in ({"optimizer": "sgd"}, {"schedule": "plateau"}, {"weight_decay": 0.1}):
        with pytest.raises(UsageError, match="together by Adam"):
            train_heads(train, labels, val, val_labels, ALL_OF_THREE, TrainingSettings(**change))


def test_features_that_are_no_numbers_are_said():
    (train, labels), (val, val_labels) = made_features(), made_features(40, 1)
    train.arrays["b"][0, 3] = np.nan
    with pytest.raises(InputError, match="not a number in epoch 1"):
        train_heads(train, labels, val, val_labels, ALL_OF_THREE, SETTINGS)


def test_features_are_computed_once_and_again_when_weights_or_pictures_change(pictures, own_sets, tmp_path):
    backbone = make_backbone("meso4", "none", SIDE)
    first = compute_features(pictures, [backbone], tmp_path, "set", AUGMENTATION, views=2)
    assert first.computed == {"meso4": "not in the cache"} and first.arrays["meso4"].shape == (2, 8, 16)
    assert isinstance(first.arrays["meso4"], np.memmap)
    again = compute_features(pictures, [backbone], tmp_path, "set", AUGMENTATION, views=2)
    assert again.computed == {} and np.array_equal(again.arrays["meso4"], first.arrays["meso4"])
    other = compute_features(
        pictures, [make_backbone("meso4", "none", SIDE, seed=1)], tmp_path, "set", AUGMENTATION, views=2
    )
    assert other.computed == {"meso4": "other weights than in the cache"}
    assert not np.allclose(other.arrays["meso4"], first.arrays["meso4"])
    elsewhere = read_split(load_own_stills(own_sets / "mine"), "val", SIDE)
    assert (
        "other pictures"
        in compute_features(elsewhere, [backbone], tmp_path, "set", AUGMENTATION, views=2).computed["meso4"]
    )
    assert (
        "other views"
        in compute_features(elsewhere, [backbone], tmp_path, "set", AUGMENTATION, views=3).computed["meso4"]
    )
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_a_changed_picture_is_noticed(own_sets, tmp_path):
    shutil.copytree(own_sets / "mine", tmp_path / "mine")
    backbone = make_backbone("meso4", "none", SIDE)
    stills = load_own_stills(tmp_path / "mine")
    compute_features(read_split(stills, "test", SIDE), [backbone], tmp_path, "set", AUGMENTATION)
    layouts.noise(tmp_path / "mine" / "test" / "fake", 4, size=64)
    found = compute_features(read_split(stills, "test", SIDE), [backbone], tmp_path, "set", AUGMENTATION)
    assert found.computed == {"meso4": "other pictures than in the cache"}


def test_features_do_not_depend_on_the_batch_and_views_are_the_augmented_pictures(pictures, tmp_path):
    backbone = make_backbone("meso4", "none", SIDE)
    one, other = (
        compute_features(pictures, [backbone], tmp_path / str(n), "set", AUGMENTATION, views=2, batch=n)
        for n in (3, 8)
    )
    np.testing.assert_allclose(one.arrays["meso4"], other.arrays["meso4"], atol=1e-5)
    inputs = AUGMENTATION(pictures.read(np.arange(8)), draw_view(8, 1, AUGMENTATION.n_draws))
    with torch.no_grad():
        np.testing.assert_allclose(one.arrays["meso4"][1], backbone.network(inputs).numpy(), atol=1e-5)


def test_features_depend_on_the_code_between_a_file_and_its_features(pictures):
    behind = {name.removeprefix("deepfake_nb.") for name in code_behind(extract_features, ImageSet, Meso4)}
    assert {
        "media.video.read_image",
        "media.images.ImageSet",
        "learning.training.read_ahead",
        "networks.mesonet.Meso4",
    } <= behind
    meso, inception = (make_backbone(name, "none", SIDE) for name in ("meso4", "mesoinception4"))
    digests = {digest_pass(pictures, backbone, AUGMENTATION) for backbone in (meso, inception)}
    assert len(digests | {digest_pass(pictures, meso, Normalise())}) == 3
    assert digest_pass(pictures, meso, Augmentation(UNIT)) in digests  # its numbers are part of the views


def test_a_damaged_cache_file_is_computed_again(pictures, tmp_path):
    backbone = make_backbone("meso4", "none", SIDE)
    compute_features(pictures, [backbone], tmp_path, "set", AUGMENTATION)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:100])
    found = compute_features(pictures, [backbone], tmp_path, "set", AUGMENTATION)
    assert found.computed == {"meso4": "the file in the cache was damaged"} and found.arrays[
        "meso4"
    ].shape == (1, 8, 16)


def test_an_interrupted_pass_leaves_nothing_behind(pictures, tmp_path):
    backbone = make_backbone("meso4", "none", SIDE)
    broken = Backbone("densenet121", nn.Conv2d(7, 1, 1), 1024, "none")
    with pytest.raises(RuntimeError):
        compute_features(pictures, [backbone, broken], tmp_path, "set", AUGMENTATION)
    assert not list(tmp_path.iterdir())


def test_only_missing_backbones_are_passed(pictures, tmp_path):
    one, two = make_backbone("meso4", "none", SIDE), make_backbone("mesoinception4", "none", SIDE)
    compute_features(pictures, [one], tmp_path, "set", AUGMENTATION)
    assert list(compute_features(pictures, [one, two], tmp_path, "set", AUGMENTATION).computed) == [
        "mesoinception4"
    ]


def test_a_picture_that_cannot_be_read_is_named_left_out_and_counted(own_sets, tmp_path):
    shutil.copytree(own_sets / "mine", tmp_path / "mine")
    (tmp_path / "mine" / "train" / "fake" / "train_01.jpg").write_bytes(b"no picture")
    found = read_split(load_own_stills(tmp_path / "mine"), "train", SIDE)
    assert len(found) == 7 and [path.name for path, _ in found.left_out] == ["train_01.jpg"]
    assert np.asarray(found.labels).tolist() == [0] * 4 + [1] * 3
    for path in (tmp_path / "mine" / "train" / "fake").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"'train' of 'mine' has no images of both labels\. 4 could not be read"
    ):
        read_split(load_own_stills(tmp_path / "mine"), "train", SIDE)


def test_a_cross_test_set_is_its_test_split_or_all_of_it(own_sets, tmp_path):
    assert len(load_cross_stills(own_sets / "others").manifest) == 10
    assert len(load_cross_stills(own_sets / "mine").manifest) == 8
    with pytest.raises(InputError, match="Beside it: mine, others"):
        load_cross_stills(own_sets / "nowhere")
    layouts.noise(tmp_path / "half" / "real", 3, size=48)
    with pytest.raises(InputError, match="both labels"):
        load_cross_stills(tmp_path / "half")


def test_the_error_for_an_unknown_backbone_lists_the_known_ones():
    for ask in (lambda: make_backbone("vgg16"), lambda: parse_combination("meso4 + vgg16")):
        with pytest.raises(
            UsageError, match=r"'vgg16'.*meso4, mesoinception4, densenet121, xception, resnet50"
        ):
            ask()


def test_without_a_hub_backbones_are_random_at_once_and_say_so(monkeypatch):
    def unreachable(request, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(backbones, "find_in_cache", lambda published: None)
    started = time.perf_counter()
    for name in ("densenet121", "xception", "resnet50"):
        backbone = make_backbone(name, "hub", 64)
        assert (
            backbone.weights == "not pretrained: timm's weights could not be reached (no answer from the hub)"
        )
        assert not backbone.is_pretrained and not backbone.network.training
    assert time.perf_counter() - started < 10


def test_a_hub_that_fails_on_the_way_is_no_end(monkeypatch):
    def failing(*_, pretrained=False, **__):
        if pretrained:
            raise OSError("cut off")
        return real(*_, **__)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", failing)
    monkeypatch.setattr(backbones, "hub_responds", lambda url: True)
    monkeypatch.setattr(backbones, "find_in_cache", lambda published: None)
    assert make_backbone("resnet50", "hub").weights.endswith("could not be reached (OSError)")


def test_downloaded_weights_are_used_without_a_request_to_the_hub(monkeypatch, tmp_path):
    torch.manual_seed(3)
    network = timm.create_model("resnet50")
    torch.save(network.state_dict(), tmp_path / "kept.pth")
    monkeypatch.setattr(backbones, "find_in_cache", lambda published: tmp_path / "kept.pth")
    monkeypatch.setattr(backbones, "hub_responds", lambda url: pytest.fail("asked"))
    backbone = make_backbone("resnet50", "hub")
    assert backbone.is_pretrained and torch.equal(backbone.network.conv1.weight, network.conv1.weight)


def test_weights_from_a_folder(tmp_path):
    torch.manual_seed(3)
    densenet, meso = timm.create_model("densenet121"), Meso4(SIDE)
    torch.save(densenet.state_dict(), tmp_path / "densenet121.pth")
    torch.save(meso.state_dict(), tmp_path / "meso4.pt")
    torch.save(meso.state_dict(), tmp_path / "resnet50.pt")
    found = make_backbone("densenet121", tmp_path)
    assert found.weights == "pretrained weights from densenet121.pth" and found.is_pretrained
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            found.network(images),
            densenet.eval().forward_head(densenet.forward_features(images), pre_logits=True),
        )
    assert make_backbone("meso4", tmp_path, SIDE).is_pretrained
    assert make_backbone("xception", tmp_path).weights == "not pretrained: no file xception.* in the folder"
    with pytest.raises(InputError, match=r"resnet50\.pt' does not fit resnet50"):
        make_backbone("resnet50", tmp_path)
    with pytest.raises(InputError, match="no folder of weights"):
        make_backbone("resnet50", tmp_path / "nowhere")


def test_published_mesonet_weights(shared_data, tmp_path):
    shutil.copy(shared_data / "mesonet" / "weights" / "Meso4_DF.h5", tmp_path / "meso4.h5")
    assert make_backbone("meso4", tmp_path, 256).weights == "pretrained weights from meso4.h5"
    assert make_backbone("meso4", tmp_path, 96).weights == "not pretrained: meso4.h5 is for 256 pixels"


def test_same_seed_same_backbone():
    def first(seed):
        return next(make_backbone("resnet50", "none", seed=seed).network.parameters())

    assert torch.equal(first(5), first(5)) and not torch.equal(first(5), first(6))


def test_norms_are_measured_and_features_then_differ_between_pictures(pictures):
    raw = make_backbone("xception", "none", SIDE)
    with torch.no_grad():
        inputs = UNIT(pictures.read(np.arange(8)))
        before = raw.network(inputs).std(0).mean()
        measured = measure_norms(raw, pictures, UNIT)
        after = measured.network(inputs).std(0).mean()
    assert before < 1e-3 < 0.05 < after and not measured.network.training
    assert measured.weights == "not pretrained (asked for); norms measured on 8 training pictures"


def test_frozen_backbones_keep_weights_and_norms():
    network = FusionNet([make_backbone("meso4", "none", SIDE)], frozen=True).train()
    before = {name: tensor.clone() for name, tensor in network.backbones.state_dict().items()}
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {"head"}
    network(torch.rand(4, 3, SIDE, SIDE)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.backbones.state_dict().items())
    assert network.head[0].weight.grad is not None and network.head.training


def test_all_parameters_of_a_network_from_scratch_have_gradients():
    network = network_maker(("meso4", "mesoinception4"), SIDE)().train()
    network(torch.rand(4, 3, SIDE, SIDE)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network(torch.rand(3, 3, SIDE, SIDE)).shape == (3,)


def test_networks_trained_side_by_side_end_as_alone():
    rng = np.random.default_rng(0)
    sets = [
        ArraySet(rng.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8), np.arange(n) % 2) for n in (10, 6)
    ]
    settings = TrainingSettings(epochs=2, batch_size=4, seed=7)
    parts = [("meso4",), ("mesoinception4",), ("meso4", "mesoinception4")]
    makers = {part: network_maker(part, SIDE) for part in parts}
    together = train_together(makers, *sets, settings, AUGMENTATION)
    grouped = train_together(makers, *sets, settings, AUGMENTATION, memory_budget=1)
    alone = train_together({parts[2]: makers[parts[2]]}, *sets, settings, AUGMENTATION)
    for name in parts:
        for ours, theirs in zip(
            together[name].network.parameters(), grouped[name].network.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(
        together[parts[2]].network.parameters(), alone[parts[2]].network.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert [len(trainer.log.records) for trainer in together.values()] == [2, 2, 2]


def test_groups_fit_in_memory():
    assert group_by_memory({"a": 3, "b": 3, "c": 9, "d": 1}, 7) == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize("given", [
    {"accuracy": 0.73, "decimals": (2, 1)},
    {"accuracy": 0.727, "precision": (0.8, 0.7), "recall": (0.7, 0.8), "decimals": (3, 1)},
    {"precision": (None, 1.0), "recall": (1.0, None), "decimals": (2, 2)},
    {"accuracy": 0.5, "precision": (0.4, 0.5), "recall": (0.4, 0.6), "decimals": (1, 1), "slack": 0.1},
])  # fmt: skip
def test_feasible_confusions_are_those_of_a_plain_search(given):
    n_real, n_fake, decimals, slack = 6, 5, given["decimals"], given.get("slack", 0)

    def agree(value, printed, digits, more):
        return printed is None or (
            value is not None and abs(value - printed) <= 0.5 * 10**-digits + more + 1e-9
        )

    plain = []
    for tn, tp in itertools.product(range(n_real + 1), range(n_fake + 1)):
        fp, fn = n_real - tn, n_fake - tp
        precision = [tn / (tn + fn) if tn + fn else None, tp / (tp + fp) if tp + fp else None]
        checks = [agree((tn + tp) / 11, given.get("accuracy"), decimals[0], 0)]
        for values, name in ((precision, "precision"), ([tn / n_real, tp / n_fake], "recall")):
            checks += [
                agree(v, p, decimals[1], slack)
                for v, p in zip(values, given.get(name, (None, None)), strict=True)
            ]
        if all(checks):
            plain.append([tn, fp, fn, tp])
    assert sorted(feasible_confusions(n_real, n_fake, **given).tolist()) == sorted(plain) and plain


def test_a_true_row_is_feasible():
    tn, tp = 4711, 4888
    rates = (tn / (tn + 5492 - tp), tp / (tp + 5413 - tn)), (tn / 5413, tp / 5492)
    printed = [tuple(round(value, 2) for value in pair) for pair in rates]
    found = feasible_confusions(5413, 5492, round((tn + tp) / 10905, 4), *printed)
    assert [tn, 5413 - tn, 5492 - tp, tp] in found.tolist()


def test_late_fusion_matches_pictures_by_name():
    a = pd.DataFrame({"media_id": ["x", "y"], "label": [0, 1], "score": [0.0, 1.0], "detector": "a"})
    late = fuse_scores([a, a.iloc[::-1].assign(score=[0.5, 0.5], detector="b")])
    assert late.score.tolist() == [0.25, 0.75] and late.detector.iloc[0] == "mean of a and b"


def test_cka_is_unbiased_where_features_outnumber_pictures():
    rng = np.random.default_rng(0)
    found = [measure_cka(rng.normal(size=(20, 500)), rng.normal(size=(20, 500))) for _ in range(40)]
    assert abs(np.mean(found)) < 0.05
    assert measure_cka(np.ones((5, 2)), rng.normal(size=(5, 2))) is None


def test_rank_correlation():
    found = correlate_ranks([1, 2, 3], np.array([[10, 20, 30], [3, 2, 1], [5, 5, 5]]))
    assert found[:2].tolist() == [1, -1] and np.isnan(found[2])


def test_pareto_keeps_equals_and_drops_the_dominated():
    assert find_pareto_front([1, 1, 2, 3], [0.6, 0.6, 0.6, 0.9]).tolist() == [True, True, False, True]


def test_what_has_no_value_is_on_no_front():
    assert find_pareto_front([1, 2, 3], [None, 0.6, 0.5]).tolist() == [False, True, False]
    assert find_pareto_front([], []).tolist() == []


def test_heads_become_networks(learnt):
    heads = learnt[-1][0]
    backbone = MesoFeatures(Meso4(SIDE))
    network = FusionNet([Backbone("meso4", backbone, 16, "none")], make_head(16), frozen=True).eval()
    assert network(torch.rand(2, 3, SIDE, SIDE)).shape == (2,)
    assert extract_head(heads, ("a", "b"))[0].in_features == 15


@pytest.mark.slow
def test_the_section_runs_on_ones_own_pictures_as_in_the_listing(own_sets, tmp_path):
    shutil.copytree(own_sets, tmp_path / "root")
    (tmp_path / "root" / "mine" / "train" / "fake" / "train_03.jpg").write_bytes(b"no picture")
    settings = {"train_set": "mine", "cross_set": "others", "backbone_weights": "none"}
    run_section("fusion", tmp_path / "root", tmp_path, protocol="published", **settings)
    folder = tmp_path / "smoke" / "fusion"
    results = pd.DataFrame(json.loads((folder / "results.json").read_text()))
    assert set(results.protocol) == {"published"} and not results.table.str.contains("scratch").any()
    left_out = results[results.metric.str.startswith("left out") & (results.row == "mine train")].iloc[0]
    assert left_out.value == 1 and "train_03.jpg" in left_out.note
    auc = results[(results.table == "Table 3.1, frozen random features") & (results.metric == "ROC AUC")]
    assert (
        len(auc) == 15 and auc.published.notna().sum() == 10 and auc.note.str.contains("not pretrained").all()
    )
    predictions = pd.read_parquet(folder / "predictions.parquet")
    sizes = predictions.groupby(["detector", "eval_set"]).size().unstack()
    assert sizes["mine"].eq(8).all() and sizes["others"].eq(10).all() and len(sizes) == 15
    assert set(predictions.train_set) == {"mine"}
    worn = pd.read_parquet(folder / "robustness.parquet")
    assert set(worn.detector) == set(predictions.detector) and set(worn.eval_set) == {"mine"}
    assert (
        worn.groupby("detector").size().eq(4 * 8 * 2).all()
        and results.table.eq("Robustness against the best part").sum() == 11
    )


@pytest.mark.slow
def test_the_section_says_what_it_cannot_use(own_sets, tmp_path):
    done = run_section("fusion", own_sets, tmp_path, status=3, train_set="mine", regime="thawed")
    assert "regime='thawed' is none of" in done.stderr
