"""Trainings that are killed, damaged, mixed up, given the wrong images, or run by two processes at once; the files in the package."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run, status_of
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from deepfake_nb.learning import generator as module
from deepfake_nb.learning.generator import (
    EncoderSettings,
    GeneratorTrainingSettings,
    Networks,
    StyleGANSettings,
    VQVAESettings,
    draw_faces,
    load_network,
    load_networks,
    save_network,
    save_networks,
    shipped_networks,
    train_encoder,
    train_networks,
    train_stylegan,
    train_vqvae,
)
from deepfake_nb.media.video import read_image
from deepfake_nb.networks.stylegan import Encoder, Generator
from deepfake_nb.networks.vqvae import VQVAE2
from deepfake_nb.people import portraits
from deepfake_nb.people.portraits import load_training_images
from deepfake_nb.people.swapping import read_masks
from deepfake_nb.sections.filming import Camera, Shot, shoot_portraits
from deepfake_nb.sections.paper_sets import (
    RECIPES,
    _choose_camera,
    _digest_recipe,
    list_set_sizes,
    make_paper_set,
)
from deepfake_nb.study.files import InputError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = StyleGANSettings(
    resolution=32, style_size=8, channels_base=256, max_channels=8, mapping_layers=2, batch_size=4
)
CODER = EncoderSettings(first_channels=4, max_channels=8, batch_size=4)
SYMBOLS = VQVAESettings(channels=8, residual_channels=4, codebook_size=8, code_size=4, batch_size=4)
SHIPPED = module.shipped_folder()


class Plain(nn.Module):
    """A perceptual network without a view of its own."""

    def forward(self, images):
        return [images]


@pytest.fixture(scope="module")
def pictures():
    """Blurred noise, which is all that these tests need."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (16, 3, 4, 4)).astype(np.float32))
    fine = functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 255)
    return fine.byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Generator(
        32, style_size=8, channels_base=256, max_channels=8, mapping_layers=2, style_per_layer=False
    )


@pytest.fixture(scope="module")
def trio(small):
    encoder = Encoder(32, style_size=8, first_channels=4, max_channels=8).eval()
    coder = VQVAE2(32, channels=8, residual_channels=4, codebook_size=8, code_size=4).eval()
    return Networks(small, encoder, coder, {"note": "random"})


def numbers(seed=0):
    return np.random.default_rng(seed)


def equal(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def trainings(small):
    """The three trainings, as functions of images and options."""
    return {
        "stylegan": lambda pictures, **options: train_stylegan(pictures, SMALL, **options),
        "encoder": lambda pictures, **options: train_encoder(
            small, pictures, CODER, perceptual=Plain(), **options
        ),
        "vqvae": lambda pictures, **options: train_vqvae(pictures, SYMBOLS, **options),
    }


NAMES = ("stylegan", "encoder", "vqvae")


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_one_network_and_leaves_global_chance_alone(pictures, small, name):
    train = trainings(small)[name]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = train(pictures, steps=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert equal(first, train(pictures, steps=3, seed=1)[0])
    assert not equal(first, train(pictures, steps=3, seed=2)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_training_taken_up_again_ends_where_an_undisturbed_one_does(pictures, small, name, tmp_path):
    train = trainings(small)[name]
    train(pictures, steps=19, folder=tmp_path)
    taken_up, log = train(pictures, steps=34, folder=tmp_path)
    undisturbed, whole = train(pictures, steps=34)
    assert equal(taken_up, undisturbed)
    assert list(log.step) == [19, 34] and list(whole.step) == [34]
    assert log.seconds.is_monotonic_increasing and (log.pictures == log.step * 4).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_trainable_weights_change(pictures, small, name):
    train = trainings(small)[name]
    before, after = (train(pictures, steps=steps)[0] for steps in (1, 4))
    moves = dict(after.named_parameters())
    fixed = {n for n, p in before.named_parameters() if torch.equal(p, moves[n])}
    assert all("norm.weight" in n for n in fixed) and bool(fixed) == (name == "encoder")


def test_the_encoder_is_trained_in_front_of_a_fixed_generator(pictures, small):
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    train_encoder(small, pictures, CODER, steps=3, perceptual=Plain())
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert all(p.grad is None for p in small.parameters())


def test_what_is_kept_is_the_running_mean(pictures):
    learner = module.GANTraining(pictures, replace(SMALL, half_life=10**9), 0)
    start = [p.clone() for p in learner.average.parameters()]
    for _ in range(3):
        size, seen = 4, (learner.step + 1) * 4
        decay = 0.5 ** (size / (0.05 * seen))
        learner.advance()
        pairs = zip(start, learner.generator.parameters(), strict=True)
        start = [mean * decay + value.detach() * (1 - decay) for mean, value in pairs]
    for ours, theirs in zip(start, learner.average.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-4)


def test_the_penalty_is_computed_at_its_steps_and_counts(pictures):
    learner = module.GANTraining(pictures, replace(SMALL, penalty_every=3), 0)
    assert [("slope" in learner.advance()) for _ in range(7)] == [True, False, False] * 2 + [True]
    gentle, strict = (train_stylegan(pictures, replace(SMALL, penalty=p), steps=2)[0] for p in (0.0, 100.0))
    assert not equal(gentle, strict)


def test_the_discriminator_is_trained_only_in_its_own_step(pictures):
    learner = module.GANTraining(pictures, SMALL, 0)
    drawn = learner.draw()
    module.taken_for_real(learner, drawn).backward()
    assert all(p.grad is None for p in learner.discriminator.parameters())
    assert all(p.requires_grad for p in learner.discriminator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.generator.parameters())
    module.teach_discriminator(learner, next(learner.batches), drawn)
    assert all(p.grad is not None for p in learner.discriminator.parameters())


def test_dead_codes_are_moved_only_at_the_beginning(pictures):
    settings = replace(SYMBOLS, reset_every=2, resets_until=4)
    learner = module.VQVAETraining(pictures, settings)
    reports = [learner.advance() for _ in range(9)]
    assert ["codes_moved" in report for report in reports] == [True, False] * 2 + [True] + [False] * 4
    assert reports[0]["codes_moved"] == 2 * SYMBOLS.codebook_size


def test_a_training_of_others_is_refused(pictures, small, tmp_path):
    train_stylegan(pictures, SMALL, steps=1, folder=tmp_path)
    with pytest.raises(InputError, match="another settings"):
        train_stylegan(pictures, replace(SMALL, batch_size=8), steps=2, folder=tmp_path)
    with pytest.raises(InputError, match="another seed"):
        train_stylegan(pictures, SMALL, steps=2, seed=1, folder=tmp_path)
    train_encoder(small, pictures, CODER, steps=1, perceptual=Plain(), folder=tmp_path)
    other, _ = train_stylegan(pictures, SMALL, steps=1)
    with pytest.raises(InputError, match="another generator"):
        train_encoder(other, pictures, CODER, steps=2, perceptual=Plain(), folder=tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_a_damaged_checkpoint_gets_a_sentence(pictures, tmp_path, damage):
    train_vqvae(pictures, SYMBOLS, steps=1, folder=tmp_path)
    path = tmp_path / "vqvae.checkpoint"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"vqvae\.checkpoint.* cannot be read\. Delete it"):
        train_vqvae(pictures, SYMBOLS, steps=2, folder=tmp_path)


def test_a_loss_that_is_no_number_stops_the_training(pictures, tmp_path):
    with pytest.raises(InputError, match="no number any more"):
        train_vqvae(pictures, replace(SYMBOLS, learning_rate=1e30), steps=3, folder=tmp_path)
    assert not (tmp_path / "vqvae.checkpoint").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: p[:, :16],
        lambda p: p.astype(np.float32),
        lambda p: p[..., 0],
        lambda p: p[:0],
        lambda p: [1],
    ],
)
def test_wrong_pictures_get_a_sentence(pictures, small, wrong):
    for train in trainings(small).values():
        with pytest.raises(InputError, match="Training needs uint8 images of shape"):
            train(wrong(pictures), steps=1)


@pytest.mark.parametrize(
    "field", [{"resolution": 48}, {"people": 0}, {"takes": 0}, {"steps": 0}, {"vqvae_steps": -1}]
)
def test_lessons_that_cannot_work_get_a_sentence(field):
    with pytest.raises(UsageError, match=next(iter(field))):
        GeneratorTrainingSettings(**field)


def test_files_give_the_networks_back(trio, tmp_path):
    save_networks(tmp_path, trio)
    again = load_networks(tmp_path)
    for kind in ("generator", "encoder", "vqvae"):
        first, second = getattr(trio, kind), getattr(again, kind)
        assert first.settings == second.settings and not second.training
        pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(
                other, one.half().to(one) if one.is_floating_point() else one, rtol=0, atol=0
            )
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_networks(tmp_path, again)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "missing", "other kind", "no settings", "wrong settings", "text"]
)
def test_a_damaged_file_gets_a_sentence(trio, tmp_path, damage):
    path = tmp_path / "generator.safetensors"
    save_network(path, trio.encoder if damage == "other kind" else trio.generator)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage in ("no settings", "wrong settings"):
        about = {"settings": json.dumps({**trio.generator.settings, "style_size": 9})}
        save_file(load_file(path), path, about if damage == "wrong settings" else None)
    elif damage != "other kind":
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello there"}[damage])
    with pytest.raises(InputError, match="no generator that can be read"):
        load_network(path, "generator")


def test_networks_that_do_not_belong_together_get_a_sentence(trio, tmp_path):
    save_networks(tmp_path, trio)
    save_network(
        tmp_path / "encoder.safetensors", Encoder(32, style_size=9, first_channels=4, max_channels=8)
    )
    with pytest.raises(InputError, match="do not belong together"):
        load_networks(tmp_path)
    save_networks(tmp_path, trio)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(InputError, match="no card"):
        load_networks(tmp_path)


def test_faces_do_not_depend_on_the_machine_s_chance(small):
    torch.manual_seed(0)
    first = draw_faces(small, 5, numbers())
    torch.manual_seed(1)
    assert np.array_equal(first, draw_faces(small, 5, numbers()))
    assert not np.array_equal(first, draw_faces(small, 5, numbers(1)))
    assert draw_faces(small, 70, numbers(), batch_size=32).shape == (70, 32, 32, 3)


def test_rendering_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    rendered = []

    def quick(start, people, takes, size, domain, seed, device):
        rendered.append(start)
        return np.full((people * takes, size, size, 3), start, np.uint8)

    monkeypatch.setattr(portraits, "render_portion", quick)
    whole = load_training_images(40, 2, 32, folder=tmp_path)
    assert rendered == [0, 16, 32] and whole.shape == (80, 32, 32, 3)
    first, *_ = sorted(tmp_path.iterdir())
    first.write_bytes(b"\x93NUMPY")
    assert np.array_equal(load_training_images(40, 2, 32, folder=tmp_path), whole)
    assert rendered == [0, 16, 32, 0]
    load_training_images(40, 2, 32, folder=tmp_path, seed=1)
    load_training_images(40, 2, 32, folder=tmp_path, domain="studio")
    assert len(rendered) == 10


QUICK = """
import sys, numpy as np, torch
from deepfake_nb.learning import generator as g
from deepfake_nb.people import portraits
torch.set_num_threads(1)
picture = lambda start, people, takes, size, **_: np.random.default_rng(start).integers(0, 256, (people * takes, size, size, 3), np.uint8)
portraits.render_portion = picture
g.STYLEGAN_SIZES[32] = g.StyleGANSettings(resolution=32, style_size=8, channels_base=256, max_channels=8, mapping_layers=2, batch_size=4)
g.LOG_EVERY = 5
g.usual_perceptual = lambda: (torch.nn.Sequential(), "none")
g.feature_difference = lambda first, second: (first - second).abs().mean()
train, g.train = g.train, lambda *a, **k: train(*a, every_s=0, **k)
lesson = g.GeneratorTrainingSettings(resolution=32, people=16, takes=1, steps=int(sys.argv[2]), encoder_steps=3, vqvae_steps=3)
print(g.train_networks(sys.argv[1], lesson, device="cpu").card["generator"]["steps"])
"""


def start_training(out, steps):
    command = [sys.executable, "-c", QUICK, str(out), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_training_goes_on_and_a_second_one_waits_outside(tmp_path):
    killed = start_training(tmp_path, 100_000)
    checkpoint = tmp_path / "training" / "stylegan.checkpoint"
    while not checkpoint.exists():
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.02)
    with pytest.raises(InputError, match="Another run"):
        train_networks(
            tmp_path,
            GeneratorTrainingSettings(resolution=32, people=1),
            perceptual=(Plain(), "none"),
            device="cpu",
        )
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "card.json").exists()
    done = torch.load(checkpoint, weights_only=True)["learner"]["step"]
    finished = start_training(tmp_path, done + 5).communicate()
    assert finished[0].strip() == str(done + 5), finished[1]
    card = load_networks(tmp_path).card
    assert card["lesson"]["steps"] == done + 5 and card["generator"]["pictures_seen"] == 4 * (done + 5)
    assert {"command", "pictures_digest", "perceptual", "resolution", "encoder", "vqvae"} < set(card)


@pytest.mark.parametrize(
    "arguments, status", [(["--resolution", "48"], 2), (["--domain", "moon"], 3), (["--people", "0"], 2)]
)
def test_bad_input_to_the_command_is_a_sentence(tmp_path, capsys, arguments, status):
    assert status_of("train-generator", "--out", tmp_path / "out", *arguments) == status
    assert "Error: " in capsys.readouterr().err


def test_the_command_hands_its_options_on(tmp_path, monkeypatch, trio, capsys):
    seen = {}

    def quick(out, settings, resume, progress):
        seen.update(out=out, settings=settings, resume=resume)
        about = {"steps": 1, "hours": 0.0}
        return replace(trio, card=dict.fromkeys(("generator", "encoder", "vqvae"), about))

    monkeypatch.setattr(module, "train_networks", quick)
    options = "--resolution 32 --people 5 --takes 3 --domain studio --seed 4 --steps 6 --encoder-steps 7 --vqvae-steps 8"
    assert status_of("train-generator", "--out", tmp_path, *options.split(), "--fresh") == 0
    assert (
        seen["settings"] == GeneratorTrainingSettings(32, 5, 3, "studio", 4, 6, 7, 8) and not seen["resume"]
    )
    assert module.list_arguments(seen["settings"]) == options
    assert "generator: 1 steps" in capsys.readouterr().out


def test_the_package_s_networks_are_whole_small_and_explained():
    networks = shipped_networks()
    assert networks is shipped_networks()
    sizes = [(SHIPPED / f"{kind}.safetensors").stat().st_size for kind in ("generator", "encoder", "vqvae")]
    assert sum(sizes) <= 12 * 2**20
    card = networks.card
    assert card["resolution"] == networks.generator.resolution == networks.vqvae.resolution == 64
    for kind in ("generator", "encoder", "vqvae"):
        assert card[kind]["pictures_seen"] > 0 and card[kind]["hours"] > 0 and card[kind]["losses"]
    assert card["command"].startswith("deepfake-nb train-generator")


@pytest.mark.slow
def test_importing_reads_no_weights():
    code = "import deepfake_nb.learning.generator as g; print(g.shipped_networks.cache_info().currsize)"
    assert run(sys.executable, "-c", code).stdout.strip() == "0"


def test_a_camera_without_truncation_draws_nobody(tmp_path):
    with pytest.raises(InputError, match="no truncation"):
        shoot_portraits(Camera(cast="x"), [Shot("n", None, (("n", "n.jpg"),))], tmp_path, tmp_path)


def test_the_recipe_of_the_set_changes_with_truncation_and_weights(monkeypatch):
    sizes = list_set_sizes("course-synthetic", "smoke")
    camera = _choose_camera("course-synthetic", RECIPES["course-synthetic"], "smoke", 0, "stated")
    cameras = (camera, replace(camera, truncation=1.0), replace(camera, seed=1))
    digests = {_digest_recipe(c, sizes, {}) for c in cameras}
    digests.add(_digest_recipe(camera, sizes, {"train": 3}))
    monkeypatch.setattr("deepfake_nb.sections.paper_sets.sha256_of", lambda path: path.name)
    digests.add(_digest_recipe(camera, sizes, {}))
    monkeypatch.setattr("deepfake_nb.sections.paper_sets.digest_code", lambda *objects: len(objects))
    digests.add(_digest_recipe(camera, sizes, {}))
    assert len(digests) == 6


@pytest.mark.slow
def test_the_synthetic_set(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path))
    made = make_paper_set("course-synthetic", "smoke")
    manifest = made.manifest
    assert made.data == "rendered people, StyleGAN" and not made.report.rejected
    assert set(manifest.method[manifest.label == 1]) == {"stylegan"}
    assert set(manifest.method[manifest.label == 0]) == {"original"}
    fakes = manifest[manifest.label == 1]
    assert fakes.source_id.is_unique and fakes.target_id.isna().all()
    assert all(next(read_masks((made.masks / path).with_suffix(".png"))).min() == 1 for path in fakes.path)
    shapes = {read_image(made.media / path).shape for path in manifest.path}
    assert shapes == {(128, 128, 3)}
    bytes_of = {path: (made.media / path).read_bytes() for path in manifest.path}
    (made.media / fakes.path.iloc[0]).unlink()
    (made.media.parent / "media.json").unlink()
    again = make_paper_set("course-synthetic", "smoke")
    assert {path: (again.media / path).read_bytes() for path in again.manifest.path} == bytes_of
