"""Inversion: codes kept and found again, images that stop, bad files, other networks, many workers, and the published loss term by term."""

import contextlib
import copy
import functools
import multiprocessing
import signal
import time
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.nn import functional

from deepfake_nb.learning import inversion, perceptual
from deepfake_nb.learning.inversion import (
    InversionSettings,
    PublishedLoss,
    StatedLoss,
    draw,
    find_codes,
    inversion_loss,
    invert,
    networks_from_files,
    read_codes,
    store_of,
    weights_digest,
    write_codes,
)
from deepfake_nb.learning.perceptual import (
    Perceptual,
    VGG16Features,
    embedded_perceptual,
    fit_patch_network,
    hub_vgg16,
    perceptual_distance,
    perceptual_network,
    ship_patch_network,
    unit_vectors,
)
from deepfake_nb.networks.stylegan import Encoder, Generator
from deepfake_nb.people.portraits import as_inputs, as_pictures
from deepfake_nb.study.files import InputError, UsageError

QUICK = InversionSettings(steps=4, batch_size=3)


def small_networks(seed=0, style_size=16):
    torch.manual_seed(seed)
    generator = Generator(
        32, style_size=style_size, channels_base=256, max_channels=16, style_per_layer=False
    )
    for layer in generator.synthesis.layers:
        layer.noise_strength.data.normal_(std=0.1)
    return generator.eval(), Encoder(32, style_size=style_size, first_channels=4, max_channels=16).eval()


@pytest.fixture(scope="module")
def networks():
    return small_networks()


@pytest.fixture(scope="module")
def loss():
    return StatedLoss(embedded_perceptual())


@pytest.fixture(scope="module")
def images(networks):
    with torch.no_grad():
        codes = networks[0].truncate(networks[0].mapping(torch.randn(7, 16)), 1.0)
        return networks[0].synthesis(codes)


@pytest.mark.parametrize("kind", ["stated", "published"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_batch_ends_as_torchs_adam_does_alone(networks, loss, images, kind, batch_size):
    generator, encoder = networks
    loss = loss if kind == "stated" else PublishedLoss(loss.perceptual, encoder)
    together = invert(images, *networks, loss, InversionSettings(steps=6, batch_size=batch_size)).codes
    for image, code in zip(images[:3], together, strict=False):
        alone = encoder(image[None]).detach().requires_grad_()
        optimizer = torch.optim.Adam([alone], lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            loss(generator.synthesis(alone), alone, loss.targets(image[None])).sum().backward()
            optimizer.step()
        torch.testing.assert_close(code, alone[0].detach(), atol=3e-3, rtol=0)


def test_the_descent_goes_down_and_networks_stay_as_they_were(loss, images):
    generator, encoder = small_networks()
    generator.train()
    before = weights_digest(generator, encoder)
    found = invert(images, generator, encoder, loss, InversionSettings(steps=30))
    assert (found.final_losses < 0.6 * found.losses[:, 0]).all()
    assert generator.training and all(p.requires_grad and p.grad is None for p in generator.parameters())
    assert weights_digest(generator, encoder) == before


def test_a_search_begins_at_the_given_codes(networks, loss, images):
    starts = torch.randn(7, 8, 16)
    stay = invert(images, *networks, loss, InversionSettings(steps=0, batch_size=3), starts=starts)
    assert torch.equal(stay.codes, starts)
    guess = networks[1](images).detach()
    settings = InversionSettings(steps=3, batch_size=4)
    told, asked = (invert(images, *networks, loss, settings, starts=begin) for begin in (guess, None))
    torch.testing.assert_close(told.codes, asked.codes, atol=1e-4, rtol=0)
    for wrong in (starts[:6], starts[:, :4], torch.randn(7, 8, 8)):
        with pytest.raises(InputError, match=r"7 images, but 6 starts|takes codes of shape"):
            invert(images, *networks, loss, settings, starts=wrong)


def test_no_steps_keep_the_encoders_guess(networks, loss, images):
    found = invert(images, *networks, loss, InversionSettings(steps=0))
    with torch.no_grad():
        torch.testing.assert_close(found.codes, networks[1](images))
    assert found.losses.shape == (7, 1) and torch.isfinite(found.losses).all()


def test_a_picture_that_stops_does_not_disturb_the_others(networks, loss, images):
    patient = invert(images, *networks, loss, InversionSettings(steps=40))
    strict = invert(images, *networks, loss, InversionSettings(steps=40, stall=5, least_gain=0.15))
    assert strict.steps.min() < strict.steps.max()
    longest = strict.steps.argmax()
    stop = int(strict.steps[longest])
    torch.testing.assert_close(
        strict.losses[longest, :stop], patient.losses[longest, :stop], atol=2e-2, rtol=0
    )
    for row, stop in enumerate(strict.steps.tolist()):
        assert (
            torch.isfinite(strict.losses[row, : stop + 1]).all()
            and torch.isnan(strict.losses[row, stop + 1 :]).all()
        )
        gained = 1 - strict.losses[row, 5:stop] / strict.losses[row, : max(stop - 5, 0)]
        assert (gained[:-1] >= 0.15 - 1e-6).all()


def test_a_picture_that_gains_nothing_stops_at_once(networks, images):
    class Flat(StatedLoss):
        def __call__(self, made, codes, targets):
            return 1 + 0 * super().__call__(made, codes, targets)

    found = invert(images, *networks, Flat(embedded_perceptual()), InversionSettings(steps=50, stall=3))
    assert (found.steps == 4).all()


def test_bf16_ends_near_float32(networks, loss, images):
    precise, coarse = (
        invert(images, *networks, loss, InversionSettings(steps=20, precision=p)) for p in ("float32", "bf16")
    )
    assert not torch.equal(precise.codes, coarse.codes)
    torch.testing.assert_close(precise.final_losses.mean(), coarse.final_losses.mean(), rtol=0.15, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("capture", [True, False])
def test_cuda_finds_what_the_processor_finds(loss, images, capture):
    here = invert(images, *small_networks(), loss, InversionSettings(steps=10))
    there = [network.cuda() for network in small_networks()]
    settings = InversionSettings(steps=10, batch_size=3, precision="float32", capture=capture)
    found = invert(images, *there, StatedLoss(embedded_perceptual()), settings)
    torch.testing.assert_close(found.codes, here.codes, atol=2e-2, rtol=0)


class PretendedGraph:
    """A CUDA graph for machines without one: what is replayed is the step itself, into the memory of the recorded one."""

    owner = None

    def replay(self):
        self.owner.recorded.copy_(inversion.Descent.step(self.owner))


def test_a_recorded_step_is_replayed_for_every_batch(networks, loss, images, monkeypatch):
    class Pretended(inversion.ReplayedDescent):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.graph.owner = self

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendedGraph)
    monkeypatch.setattr(inversion, "ReplayedDescent", Pretended)
    settings, given = InversionSettings(steps=4, batch_size=3), images.clone()
    search = inversion.BatchSearch(*networks, loss, settings, torch.device("cpu"))
    search.replays = True
    with torch.no_grad(), inversion.hold_fixed([*networks, *loss.networks()]):
        parts = [
            search(batch) for batch in images.split(3)
        ]  # the second takes the first one's place, the third is smaller
    codes = torch.cat([part[0] for part in parts])
    expected = invert(images, *networks, loss, settings).codes
    torch.testing.assert_close(codes, expected, atol=1e-3, rtol=0)
    assert torch.equal(images, given)


def test_distances_are_taken_on_the_networks_device(loss, images):
    aside = Perceptual(copy.deepcopy(loss.perceptual.network).to("meta"), "no weights")
    with pytest.raises(NotImplementedError, match="meta"):  # everything went to where the network is
        perceptual_distance(aside, images, images)


def test_bad_pictures_and_settings_are_refused(networks, loss, images):
    with pytest.raises(InputError, match="takes images of shape"):
        invert(images[..., :16], *networks, loss, QUICK)
    with pytest.raises(InputError, match="no numbers"):
        invert(images * torch.nan, *networks, loss, QUICK)
    with pytest.raises(InputError, match="do not belong together"):
        invert(images, networks[0], small_networks(style_size=8)[1], loss, QUICK)
    with pytest.raises(InputError, match="takes images of shape"):
        find_codes(np.zeros((2, 64, 64, 3), np.uint8), *networks, loss, QUICK)
    for wrong in ({"steps": -1}, {"batch_size": 0}, {"stall": -2}, {"precision": "half"}):
        with pytest.raises(UsageError):
            InversionSettings(**wrong)
    assert invert(images[:0], *networks, loss, QUICK).codes.shape == (0, 8, 16)


def test_names_that_nobody_knows():
    with pytest.raises(UsageError, match="'hub' or is 'embedded'"):
        perceptual_network("cloud")
    with pytest.raises(UsageError, match="'lpips' or 'idinvert'"):
        perceptual_network("embedded", "style")
    with pytest.raises(UsageError, match="neither stated nor published"):
        inversion_loss("guess", None)


def test_published_loss_term_by_term(networks, images):
    images, (generator, encoder) = images[:3], networks
    perceptual = Perceptual(VGG16Features(), "random VGG16")
    loss = PublishedLoss(perceptual, encoder)
    with torch.no_grad():
        codes = encoder(images.flip(0))
        made = generator.synthesis(codes)
        found = loss(made, codes, loss.targets(images))
        features = [perceptual.network(some)[3] for some in (made, images)]
        expected = [
            functional.mse_loss(made[at], images[at])
            + 5e-5 * functional.mse_loss(features[0][at], features[1][at])
            + 2.0 * functional.mse_loss(encoder(made)[at], codes[at])
            for at in range(len(images))
        ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_lpips_by_its_definition(loss, images):
    with torch.no_grad():
        levels = [
            [unit_vectors(maps) for maps in loss.perceptual.network(some)]
            for some in (images, images.flip(0))
        ]
        expected = torch.stack(
            [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(*levels, strict=True)]
        ).mean(0)
    torch.testing.assert_close(
        perceptual_distance(loss.perceptual, images, images.flip(0), batch_size=2),
        expected,
        atol=1e-4,
        rtol=0,
    )
    assert perceptual_distance(loss.perceptual, images, images).abs().max() < 1e-5


def torchvision_vgg16(seed=0):
    """The layers of torchvision's VGG16 and their tensors as its file names them, with one of the classifier, which nobody uses."""
    from torchvision.models import vgg

    torch.manual_seed(seed)
    layers = vgg.make_layers(vgg.cfgs["D"]).eval()
    tensors = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    return layers, tensors | {"classifier.0.weight": torch.zeros(2, 2)}


def test_vgg16_features_are_torchvisions():
    from torchvision.transforms.functional import normalize

    layers, tensors = torchvision_vgg16()
    network = VGG16Features(state_dict=tensors)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    inputs = normalize((images + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        for found, end in zip(network(images), (4, 9, 16, 23, 30), strict=True):
            torch.testing.assert_close(found, layers[:end](inputs), atol=1e-4, rtol=1e-4)


def test_without_a_hub_ours_is_taken_and_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "hub_responds", lambda url, timeout=4.0: False)
    assert hub_vgg16("lpips") is None
    assert perceptual_network("hub").words == perceptual.EMBEDDED
    assert "not VGG16" in inversion_loss("stated", None, "hub").describe()


def test_with_a_hub_the_kept_file_is_taken(monkeypatch, tmp_path):
    import torchvision

    weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    kept = tmp_path / "checkpoints" / weights.url.rpartition("/")[2]
    kept.parent.mkdir()
    kept.touch()
    _, tensors = torchvision_vgg16(seed=1)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, *args, **kwargs: tensors)
    found = perceptual_network("hub")
    assert "torchvision" in found.words
    assert torch.equal(found.network.state_dict()["features.0.weight"], tensors["features.0.weight"])


def test_what_lies_in_the_package_can_be_made_again(tmp_path, monkeypatch):
    few = functools.partial(fit_patch_network, patches=1500)
    monkeypatch.setattr(perceptual, "fit_patch_network", few)
    ship_patch_network(tmp_path / "one.safetensors", count=2, size=32)
    ship_patch_network(tmp_path / "two.safetensors", count=2, size=32)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert embedded_perceptual().network.widths == (16, 32, 64, 96)


def test_patch_kernels_do_not_respond_to_brightness():
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.9
    network = fit_patch_network(pictures, widths=(8, 8), patches=500)
    for maps, brighter in zip(network(pictures), network(pictures + 0.2), strict=True):
        torch.testing.assert_close(maps[..., 2:-2, 2:-2], brighter[..., 2:-2, 2:-2], atol=1e-3, rtol=0)


def test_codes_are_found_once(networks, loss, images, tmp_path, monkeypatch):
    pictures = as_pictures(images)
    first = find_codes(pictures[:5], *networks, loss, QUICK, folder=tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    states = [path.stat().st_mtime_ns for path in files]
    searched = []
    search = inversion.search
    monkeypatch.setattr(inversion, "search", lambda task: searched.extend(task.places) or search(task))
    again = find_codes(pictures, *networks, loss, QUICK, folder=tmp_path)
    assert (first.kept, again.kept, sorted(searched)) == (0, 5, [5, 6])
    assert torch.equal(again.codes[:5], first.codes) and torch.equal(again.steps, torch.full((7,), 4))
    assert [path.stat().st_mtime_ns for path in files] == states


def test_a_search_that_is_cut_off_goes_on(networks, loss, images, tmp_path, monkeypatch):
    pictures, search = as_pictures(images), inversion.search

    def cut_off(task):
        if task.places[0] >= 3:
            raise KeyboardInterrupt
        return search(task)

    monkeypatch.setattr(inversion, "search", cut_off)
    with pytest.raises(KeyboardInterrupt):
        find_codes(pictures, *networks, loss, QUICK, folder=tmp_path)
    monkeypatch.setattr(inversion, "search", search)
    found = find_codes(pictures, *networks, loss, QUICK, folder=tmp_path)
    assert found.kept == 3
    torch.testing.assert_close(
        found.codes, find_codes(pictures, *networks, loss, QUICK).codes, atol=2e-3, rtol=0
    )


def search_until_killed(folder):
    """What the killed process does: three hundred images, one after the other."""
    torch.set_num_threads(1)
    pictures = np.random.default_rng(5).integers(0, 255, (300, 32, 32, 3)).astype(np.uint8)
    find_codes(pictures, *small_networks(), StatedLoss(embedded_perceptual()), QUICK, folder=folder)


def test_a_killed_search_goes_on(networks, loss, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=search_until_killed, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.safetensors"))) < 6 and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    pictures = np.random.default_rng(5).integers(0, 255, (300, 32, 32, 3)).astype(np.uint8)[:8]
    resumed = find_codes(pictures, *networks, loss, QUICK, folder=tmp_path)
    assert 5 <= resumed.kept <= 8
    torch.testing.assert_close(
        resumed.codes, find_codes(pictures, *networks, loss, QUICK).codes, atol=2e-3, rtol=0
    )


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes()[:50]), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_code_is_found_again(networks, loss, images, tmp_path, damage):
    pictures = as_pictures(images[:3])
    whole = find_codes(pictures, *networks, loss, QUICK, folder=tmp_path)
    damage(sorted(tmp_path.rglob("*.safetensors"))[0])
    again = find_codes(pictures, *networks, loss, QUICK, folder=tmp_path)
    assert again.kept == 2
    torch.testing.assert_close(again.codes, whole.codes, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "other",
    [
        {"settings": InversionSettings(steps=5)},
        {"settings": InversionSettings(steps=4, learning_rate=0.02)},
        {"settings": InversionSettings(steps=4, stall=2)},
        {"networks": small_networks(seed=1)},
        {"loss": "published"},
    ],
)
def test_codes_of_another_search_are_not_taken(networks, loss, tmp_path, other):
    here = store_of(tmp_path, *networks, loss, QUICK)[0]
    theirs = other.get("networks", networks)
    wanted = PublishedLoss(loss.perceptual, theirs[1]) if "loss" in other else loss
    assert store_of(tmp_path, *theirs, wanted, other.get("settings", QUICK))[0] != here
    assert store_of(tmp_path, *networks, loss, InversionSettings(steps=4, batch_size=9))[0] == here


@pytest.mark.slow
def test_two_processes_find_what_one_finds(networks, loss, images, tmp_path):
    pictures = as_pictures(images)
    alone = find_codes(pictures, *networks, loss, QUICK)
    shared = find_codes(pictures, *networks, loss, QUICK, folder=tmp_path, jobs=2)
    torch.testing.assert_close(shared.codes, alone.codes, atol=2e-3, rtol=0)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(pictures)


def test_a_dask_cluster_finds_what_one_process_finds(networks, loss, images):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        found = find_codes(
            as_pictures(images[:4]), *networks, loss, QUICK, scheduler=cluster.scheduler_address
        )
    torch.testing.assert_close(
        found.codes, find_codes(as_pictures(images[:4]), *networks, loss, QUICK).codes, atol=2e-3, rtol=0
    )


def test_progress_counts_pictures(networks, loss, images, tmp_path):
    class Bar:
        done, total = 0, None

        def add_task(self, description, total):
            self.total = total

        def advance(self, task, count=1):
            self.done += count

    bar = Bar()
    find_codes(as_pictures(images[:2]), *networks, loss, QUICK, folder=tmp_path)
    find_codes(as_pictures(images), *networks, loss, QUICK, folder=tmp_path, progress=bar)
    assert (bar.total, bar.done) == (5, 5)


def test_a_file_of_codes_knows_its_generator(networks, tmp_path):
    path, codes = tmp_path / "codes.safetensors", torch.randn(3, 8, 16)
    write_codes(path, codes, networks[0], labels=torch.arange(3))
    assert torch.equal(read_codes(path, networks[0])["labels"], torch.arange(3))
    with pytest.raises(InputError, match="codes of another generator"):
        read_codes(path, small_networks(seed=1)[0])
    with pytest.raises(InputError, match="cannot be read"):
        read_codes(tmp_path / "absent.safetensors", networks[0])
    write_codes(path, codes, networks[0])
    from safetensors.torch import save_file

    save_file({"other": codes}, path)
    with pytest.raises(InputError, match="holds no codes"):
        read_codes(path, networks[0])


def test_networks_from_files(networks, tmp_path):
    generator, encoder = networks
    torch.save({"state_dict": generator.state_dict()}, tmp_path / "generator.pth")
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    loaded = networks_from_files(tmp_path / "generator.pth", tmp_path / "encoder.pth")
    codes = torch.randn(2, 8, 16)
    torch.testing.assert_close(loaded[0].synthesis(codes), generator.synthesis(codes))
    with pytest.raises(InputError, match="not those of a StyleGAN generator"):
        networks_from_files(tmp_path / "encoder.pth", tmp_path / "encoder.pth")
    torch.save(generator, tmp_path / "objects.pth")
    with pytest.raises(InputError, match=r"Python objects.*state_dict\(\), 'plain.pth'"):
        networks_from_files(tmp_path / "objects.pth", tmp_path / "encoder.pth")


def test_draw_is_what_the_generator_makes(networks):
    codes = torch.randn(5, 8, 16)
    with torch.no_grad():
        expected = as_pictures(networks[0].synthesis(codes))
    assert np.abs(draw(networks[0], codes, batch_size=2).astype(int) - expected).max() <= 1
    assert draw(networks[0], codes[:0]).shape == (0, 32, 32, 3)


def test_pictures_in_any_order_of_memory(networks, loss, images):
    pictures = as_pictures(images)
    pictures.flags.writeable = False
    turned = find_codes(pictures[::-1], *networks, loss, QUICK).codes
    torch.testing.assert_close(
        turned.flip(0), find_codes(pictures, *networks, loss, QUICK).codes, atol=2e-3, rtol=0
    )


def test_pictures_and_tensors_are_one(images):
    pictures = as_pictures(images)
    assert np.array_equal(as_pictures(as_inputs(pictures)), pictures)
