"""What the section cannot show: faces that are not there, networks that do not fit, killed searches, every refusal."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from deepfake_nb import latent
from deepfake_nb.builds import build
from deepfake_nb.datasets import RECIPES, paper_set
from deepfake_nb.generator import shipped_networks
from deepfake_nb.inversion import InversionSettings, StatedLoss, embedded_perceptual
from deepfake_nb.latent import (
    HIDDEN,
    aligned_faces,
    faces_after,
    fit_pca,
    latent_networks,
    light_network,
    pixel_scores,
    prior_errors,
    project_pca,
    project_stylegan,
    project_vqvae,
    resized,
    train_head,
    train_on_pixels,
    validation_people,
)
from deepfake_nb.study import InputError, UsageError, run_section
from deepfake_nb.stylegan import Encoder, Generator
from deepfake_nb.video import Frame, read_frames, write_video


@pytest.fixture(autouse=True)
def one_thread():
    """Networks as small as these are slower on several threads, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return paper_set("dfdc", "smoke", root=tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def faces(made, tmp_path_factory):
    return aligned_faces(made, 64, tmp_path_factory.mktemp("aligned"))


@pytest.fixture(scope="module")
def networks():
    return latent_networks()


@pytest.fixture(scope="module")
def two_kinds():
    """Codes (400, 40) of which the first ten numbers say a little each, and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    codes = rng.normal(size=(400, 40)).astype(np.float32) * 7 + 3
    codes[:, :10] += 6 * labels[:, None]
    return codes, labels


def rewritten(path, change):
    """Write a video again, its frames changed by `change(index, image)`."""
    frames = [Frame(f.index, f.time_s, change(f.index, f.image)) for f in read_frames(path)]
    write_video(path, [frame.image for frame in frames], 30)


def test_shipped_networks_are_copied_and_stay_as_they_are(networks):
    shipped = shipped_networks()
    assert networks.generator is not shipped.generator
    assert networks.generator.resolution == networks.encoder.resolution
    for mine, theirs in zip(networks.encoder.parameters(), shipped.encoder.parameters(), strict=True):
        assert mine is not theirs and torch.equal(mine, theirs)


def test_generator_and_encoder_of_different_resolutions(tmp_path):
    torch.save(Generator(64, style_size=32, channels_base=512).state_dict(), tmp_path / "generator.pth")
    torch.save(Encoder(32, style_size=32, first_channels=8).state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(InputError, match="do not belong together"):
        latent_networks(tmp_path / "generator.pth", tmp_path / "encoder.pth")


def test_a_pickle_of_classes_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(Generator(32, style_size=16, channels_base=128), tmp_path / "generator.pth")
    with pytest.raises(InputError, match=r"state_dict\(\), 'plain.pth'"):
        latent_networks(tmp_path / "generator.pth", tmp_path / "generator.pth")


def test_frames_and_videos_without_a_face_are_left_out_and_counted(made, tmp_path):
    shutil.copytree(made.media, tmp_path / "media")
    manifest = made.manifest
    half, none = manifest[(manifest.label == 1) & (manifest.split == "train")].path.iloc[:2]
    rewritten(tmp_path / "media" / half, lambda at, image: image if at < 5 else np.full_like(image, 90))
    rewritten(tmp_path / "media" / none, lambda at, image: np.full_like(image, 90))
    settings = {**RECIPES["dfdc"].settings, "seed": 0}
    report = build("dfdc-preview", tmp_path / "media", tmp_path / "built", settings=settings)
    broken = replace(made, media=tmp_path / "media", report=report)
    found = aligned_faces(broken, 64, tmp_path / "aligned")
    assert len(found.table) == len(found.pictures) == 2 * len(manifest) - 3
    assert found.left_out.frames.dropna().tolist() == [1]
    assert found.left_out.media_id[found.left_out.frames.isna()].tolist() == [none]


def test_faces_are_cut_once_and_again_for_another_size(made, faces, tmp_path, monkeypatch):
    assert len(faces.left_out) == 0 and faces.pictures.shape == (2 * len(made.manifest), 64, 64, 3)
    first = aligned_faces(made, 32, tmp_path)
    monkeypatch.setattr(latent, "write_pictures", lambda *_: pytest.fail("cut again"))
    assert np.array_equal(aligned_faces(made, 32, tmp_path).pictures, first.pictures)
    with pytest.raises(pytest.fail.Exception):
        aligned_faces(made, 48, tmp_path)


def test_a_set_of_one_label_is_refused(made, tmp_path, monkeypatch):
    def real_only(row, track):
        return latent_frames_of(row, track).assign(label=0)

    latent_frames_of = latent.frames_of
    monkeypatch.setattr(latent, "frames_of", real_only)
    with pytest.raises(InputError, match="no faces of both labels"):
        aligned_faces(made, 32, tmp_path)


def test_people_of_validation_are_not_learnt_from(faces):
    table = faces.table
    set_aside = validation_people(table, np.random.default_rng(1))
    rest = set(table.person[table.split == "train"]) - set_aside
    assert len(set_aside) == 1 and rest and not set_aside & set(table.person[table.split == "test"])
    with pytest.raises(InputError, match="no faces of both labels"):
        validation_people(table.assign(person="one"), np.random.default_rng(1))


def test_projectors_do_not_depend_on_the_company(networks, faces):
    pictures = resized(faces.pictures[:5], networks.vqvae.resolution)
    together = project_vqvae(networks.vqvae, pictures)
    alone = np.concatenate([project_vqvae(networks.vqvae, pictures[at : at + 1]).codes for at in range(5)])
    assert (together.codes == alone).mean() > 0.999
    assert np.array_equal(together.reconstructions.shape, pictures.shape)
    flat = faces.pictures.reshape(len(faces.pictures), -1).astype(float)
    model = fit_pca(np.asarray(faces.pictures), components=8, batch_size=16)
    codes = project_pca(model, np.asarray(faces.pictures)).codes
    assert codes.shape == (len(flat), 8) and (np.diff(codes.var(0)) < codes.var(0).max() * 0.2).all()


def test_all_components_give_the_picture_back(faces):
    few = np.asarray(resized(faces.pictures[:12], 16))
    model = fit_pca(few, components=512)
    assert model.n_components_ == 12
    assert np.abs(project_pca(model, few).reconstructions.astype(int) - few).max() <= 1


KILLED = """
import sys, numpy as np, torch
from deepfake_nb.inversion import InversionSettings, StatedLoss, embedded_perceptual
from deepfake_nb.generator import shipped_networks
from deepfake_nb.latent import latent_networks, project_stylegan
assert shipped_networks.cache_info().currsize == 0, "importing loaded the weights"
torch.set_num_threads(1)
loss, settings = StatedLoss(embedded_perceptual()), InversionSettings(steps=4, batch_size=2)
project_stylegan(latent_networks(), np.load(sys.argv[1]), loss, settings, folder=sys.argv[2])
"""


def test_a_killed_search_goes_on_where_it_was(networks, faces, tmp_path):
    pictures = np.array(faces.pictures[:24])
    np.save(tmp_path / "pictures.npy", pictures)
    command = [sys.executable, "-c", KILLED, tmp_path / "pictures.npy", tmp_path / "codes"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "codes").rglob("*.safetensors"))) < 6 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(list((tmp_path / "codes").rglob("*.safetensors")))
    loss, settings = StatedLoss(embedded_perceptual()), InversionSettings(steps=4, batch_size=2)
    resumed, found = project_stylegan(networks, pictures, loss, settings, folder=tmp_path / "codes")
    assert 6 <= before < len(pictures) and found.kept >= 5
    undisturbed, fresh = project_stylegan(networks, pictures, loss, settings)
    assert fresh.kept == 0 and np.allclose(resumed.codes, undisturbed.codes, atol=1e-3)


def test_codes_of_another_generator_are_searched_anew(networks, faces, tmp_path):
    pictures = np.array(faces.pictures[:2])
    loss, settings = StatedLoss(embedded_perceptual()), InversionSettings(steps=1)
    project_stylegan(networks, pictures, loss, settings, folder=tmp_path)
    torch.manual_seed(0)
    other = networks.generator.__class__(**networks.generator.settings).eval()
    _, found = project_stylegan(networks._replace(generator=other), pictures, loss, settings, folder=tmp_path)
    assert found.kept == 0
    assert project_stylegan(networks, pictures, loss, settings, folder=tmp_path)[1].kept == 2


@pytest.mark.parametrize("name", ["RF", *HIDDEN])
def test_heads_learn_and_repeat(two_kinds, name):
    codes, labels = two_kinds
    options = {"epochs": 12, "trees": 40, "jobs": 1}
    head, again, other = (
        train_head(name, codes[:240], labels[:240], (codes[240:300], labels[240:300]), seed=seed, **options)
        for seed in (0, 0, 1)
    )
    scores = head.scores(codes[300:])
    assert ((scores > 0.5) == labels[300:]).mean() > 0.8
    assert np.array_equal(scores, again.scores(codes[300:])) and not np.array_equal(
        scores, other.scores(codes[300:])
    )
    assert scores.min() >= 0 and scores.max() <= 1


def test_the_best_epoch_counts_and_patience_ends(two_kinds):
    codes, labels = two_kinds
    noise = np.random.default_rng(1).permutation(labels)
    head = train_head("MLP-2", codes[:200], noise[:200], (codes[200:], noise[200:]), epochs=60, patience=3)
    losses = head.log.val_loss.to_numpy()
    assert len(losses) < 60 and losses.argmin() == len(losses) - 4
    with torch.no_grad():
        logits = head.model(head.scale(codes[200:]))
    wanted = torch.from_numpy(noise[200:]).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted).item()
    assert abs(loss - losses.min()) < 1e-6


def test_a_number_that_never_varies_does_no_harm(two_kinds):
    codes, labels = two_kinds
    flat = np.concatenate([codes, np.full((400, 1), 5.0, np.float32)], 1)
    head = train_head("LR", flat[:300], labels[:300], (flat[300:], labels[300:]), epochs=3)
    assert np.isfinite(head.scores(flat)).all()


def test_heads_that_cannot_be(two_kinds):
    codes, labels = two_kinds
    with pytest.raises(UsageError, match=r"no classifier 'SVM'.*RF, LR, MLP-2, MLP-5"):
        train_head("SVM", codes, labels, (codes, labels))
    with pytest.raises(InputError, match="of one kind"):
        train_head("LR", codes, np.ones(400, int), (codes, labels))


def test_layers_of_the_paper():
    widths = [layer.out_features for layer in light_network(7168, "MLP-5") if hasattr(layer, "out_features")]
    assert widths == [2048, 512, 512, 512, 1]
    assert light_network(7168, "LR")(torch.zeros(3, 7168)).shape == (3,)


@pytest.mark.parametrize("name", ["MesoNet", "EfficientNet"])
def test_pixel_networks_answer_with_the_best_epoch(faces, name):
    pictures, labels = np.asarray(resized(faces.pictures, 32)), faces.table.label.to_numpy()
    rows = np.arange(len(labels))
    trainer = train_on_pixels(name, pictures, labels, rows[::2], rows[1::2], epochs=2)
    scores = pixel_scores(trainer, pictures[:6])
    assert scores.shape == (6,) and ((scores >= 0) & (scores <= 1)).all()
    with pytest.raises(KeyError):
        train_on_pixels("VGG", pictures, labels, rows[::2], rows[1::2], epochs=1)


def test_faces_after_a_call_are_those_frames_and_worse(made, faces):
    rows = made.manifest[made.manifest.kind == "video"].iloc[:2]
    clean = [faces.pictures[(faces.table.media_id == media_id).to_numpy()] for media_id in rows.media_id]
    light, heavy = (
        faces_after(made, rows, "conference channel", strength, 64, seed=0) for strength in (0.1, 1.0)
    )
    again = faces_after(made, rows, "conference channel", 1.0, 64, seed=0)
    for one, little, much, twice in zip(clean, light, heavy, again, strict=True):
        assert one.shape == little.shape == much.shape and np.array_equal(much, twice)
        far = [np.abs(other.astype(int) - one).mean() for other in (little, much)]
        assert 0 < far[0] < far[1]


def test_equation_one_at_the_ends(two_kinds):
    labels, scores = np.array([0] * 10 + [1] * 10), np.r_[np.linspace(0, 0.6, 10), np.linspace(0.3, 1, 10)]
    low, high = prior_errors(labels, scores, [1e-6, 1 - 1e-6])
    assert low == pytest.approx((scores[:10] >= 0.5).mean(), abs=1e-4)
    assert high == pytest.approx((scores[10:] < 0.5).mean(), abs=1e-4)
    with pytest.raises(InputError):
        prior_errors(labels, scores, [0.0], training_prior=0.5)


def test_the_section_refuses_half_a_pair(tmp_path):
    with pytest.raises(InputError, match="belong together"):
        run_section("latent", "smoke", tmp_path, settings={"encoder_weights": "e.pth"})
    assert not list(tmp_path.rglob("results.json"))
