"""What the section cannot show: faces that are not there, networks that do not fit, killed searches, every refusal."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deepfake_nb.data.builds import build
from deepfake_nb.evaluation.metrics import Measured
from deepfake_nb.learning.generator import shipped_networks
from deepfake_nb.learning.inversion import InversionSettings, StatedLoss
from deepfake_nb.learning.perceptual import embedded_perceptual
from deepfake_nb.media.video import Frame, read_frames, write_video
from deepfake_nb.networks.stylegan import Encoder, Generator
from deepfake_nb.sections import latent
from deepfake_nb.sections.latent import (
    HIDDEN,
    aligned_faces,
    detectable_area,
    faces_after,
    fit_pca,
    latent_networks,
    light_network,
    pixel_scores,
    prior_errors,
    project_encoder,
    project_pca,
    project_stylegan,
    project_vqvae,
    resize_images,
    select_first_frames,
    train_head,
    train_on_pixels,
    validation_people,
)
from deepfake_nb.sections.paper_sets import RECIPES, make_paper_set
from deepfake_nb.study.files import InputError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_paper_set("dfdc", "smoke", root=tmp_path_factory.mktemp("sets"))


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


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_importing_loads_no_weights():
    shipped_networks.cache_clear()
    fresh = runpy.run_module("deepfake_nb.sections.latent", run_name="deepfake_nb.latent_again")
    assert shipped_networks.cache_info().currsize == 0
    fresh["latent_networks"]()
    assert shipped_networks.cache_info().currsize == 1


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
        return latent_list_frames(row, track).assign(label=0)

    latent_list_frames = latent.list_frames
    monkeypatch.setattr(latent, "list_frames", real_only)
    with pytest.raises(InputError, match="no faces of both labels"):
        aligned_faces(made, 32, tmp_path)


def test_people_of_validation_are_not_trained_on(faces):
    table = faces.table
    set_aside = validation_people(table, np.random.default_rng(1))
    rest = set(table.person[table.split == "train"]) - set_aside
    assert len(set_aside) == 1 and rest and not set_aside & set(table.person[table.split == "test"])
    with pytest.raises(InputError, match="no faces of both labels"):
        validation_people(table.assign(person="one"), np.random.default_rng(1))


def test_projectors_do_not_depend_on_the_company(networks, faces):
    pictures = resize_images(faces.pictures[:5], networks.vqvae.resolution)
    together = project_vqvae(networks.vqvae, pictures)
    alone = np.concatenate([project_vqvae(networks.vqvae, pictures[at : at + 1]).codes for at in range(5)])
    assert (together.codes == alone).mean() > 0.999
    assert np.array_equal(together.reconstructions.shape, pictures.shape)
    flat = faces.pictures.reshape(len(faces.pictures), -1).astype(float)
    model = fit_pca(np.asarray(faces.pictures), components=8, batch_size=16)
    codes = project_pca(model, np.asarray(faces.pictures)).codes
    assert codes.shape == (len(flat), 8) and (np.diff(codes.var(0)) < codes.var(0).max() * 0.2).all()


def test_all_components_give_the_picture_back(faces):
    few = np.asarray(resize_images(faces.pictures[:12], 16))
    model = fit_pca(few, components=512)
    assert model.n_components_ == 12
    assert np.abs(project_pca(model, few).reconstructions.astype(int) - few).max() <= 1


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
def test_heads_are_trained_reproducibly(two_kinds, name):
    codes, labels = two_kinds

    def scores(seed, epochs):
        sets = codes[:240], labels[:240], (codes[240:300], labels[240:300])
        head = train_head(name, *sets, seed=seed, epochs=epochs, trees=40, jobs=1)
        return head.scores(codes[300:])

    learnt = scores(0, 12)
    assert ((learnt > 0.5) == labels[300:]).mean() > 0.8 and learnt.min() >= 0 and learnt.max() <= 1
    once, again, other = (scores(seed, 2) for seed in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


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


def test_a_forest_sees_ranks_and_indices_as_they_are(two_kinds):
    codes, labels = two_kinds
    head = train_head("RF", codes, labels, None, trees=5, levels=8)
    assert set(np.unique(head.scale(codes))) == set(range(8))
    stretched = np.sign(codes) * np.abs(codes) ** 3  # in the same order, so of the same ranks
    again = train_head("RF", stretched, labels, None, trees=5, levels=8)
    assert np.array_equal(again.scores(stretched), head.scores(codes))
    indices = np.random.default_rng(0).integers(0, 300, (60, 5))
    assert train_head("RF", indices, labels[:60], None, trees=2).scale(indices) is indices


def test_a_number_that_never_varies_does_no_harm(two_kinds):
    codes, labels = two_kinds
    flat = np.concatenate([codes, np.full((400, 1), 5.0, np.float32)], 1)
    head = train_head("LR", flat[:300], labels[:300], (flat[300:], labels[300:]), epochs=3)
    assert np.isfinite(head.scores(flat)).all()


@pytest.mark.parametrize("where", ["learnt", "choosing"])
def test_codes_that_are_no_numbers_get_a_sentence(two_kinds, where):
    codes, labels = two_kinds
    broken = codes.copy()
    broken[0 if where == "learnt" else -1] = np.nan
    learnt = broken if where == "learnt" else codes
    with pytest.raises(InputError, match="no number in any of 3 epochs"):
        train_head("LR", learnt[:300], labels[:300], (broken[300:], labels[300:]), epochs=3)


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
def test_pixel_networks_predict_with_the_best_epoch(faces, name):
    pictures, labels = np.asarray(resize_images(faces.pictures, 32)), faces.table.label.to_numpy()
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


def test_the_section_refuses_half_a_pair():
    notebook = json.loads((Path(__file__).parents[1] / "nbs" / "50_latent.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (checks,) = [source for source in cells if source.startswith("refuse_unknown_parameters")]
    given = {"protocol": "stated", "generator_weights": "", "encoder_weights": "", "UsageError": UsageError}
    given["refuse_unknown_parameters"] = lambda namespace, section: None
    exec(checks, dict(given))
    exec(checks, given | {"generator_weights": "g.pth", "encoder_weights": "e.pth"})
    with pytest.raises(UsageError, match="belong together"):
        exec(checks, given | {"encoder_weights": "e.pth"})
    with pytest.raises(UsageError, match="neither stated nor published"):
        exec(checks, given | {"protocol": "guessed"})


def test_the_power_of_a_test():
    sure, unsure, nothing = (
        Measured(0.6, low, high, 9, "") for low, high in ((0.58, 0.62), (0.3, 0.9), (None, None))
    )
    assert detectable_area(nothing) is None
    assert 0.5 < detectable_area(sure) < 0.55 < detectable_area(unsure) <= 1
    assert detectable_area(sure, power=0.5) == pytest.approx(0.52)
    rng = np.random.default_rng(0)
    drawn = (
        0.5 + 0.1 + 0.05 * rng.normal(size=4000)
    )  # studies of a detector of .6 with a standard error of .05
    found = (drawn - 1.96 * 0.05 > 0.5).mean()
    powers = {p: detectable_area(Measured(0.5, 0.402, 0.598, 9, ""), p) for p in (found - 0.03, found + 0.03)}
    assert powers[found - 0.03] < 0.6 < powers[found + 0.03]


def test_first_frames_of_training_videos_only(faces):
    fewer = select_first_frames(faces, 1)
    counts = fewer.table.groupby(["split", "media_id"]).size()
    assert (counts["train"] == 1).all() and (counts["test"] == 2).all()
    first = faces.table.drop_duplicates("media_id")
    assert (fewer.table[fewer.table.split == "train"]["unit"] == 0).all()
    at = {media_id: row for row, media_id in zip(first.index, first.media_id, strict=True)}
    for row, media_id in enumerate(fewer.table.media_id[fewer.table.split == "train"]):
        mine = fewer.table.index[fewer.table.media_id == media_id][0]
        assert np.array_equal(fewer.pictures[mine], faces.pictures[at[media_id]]), row
    assert (
        len(select_first_frames(faces, 2).table)
        == len(faces.table)
        == len(select_first_frames(faces, 2).pictures)
    )


def test_the_encoder_alone_is_where_the_descent_begins(networks, faces):
    pictures = resize_images(faces.pictures[:5], 64)
    loss = StatedLoss(embedded_perceptual())
    guess = project_encoder(networks, pictures, batch_size=2)
    found, _ = project_stylegan(networks, pictures, loss, InversionSettings(steps=0))
    assert np.allclose(guess.codes, found.codes, atol=1e-4)
    assert np.abs(guess.reconstructions.astype(int) - found.reconstructions).max() <= 1
