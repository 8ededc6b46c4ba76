"""The sections beyond the papers: features kept once, people and sources left out, and the contract of predictions."""

import numpy as np
import pandas as pd
import pytest
import torch

from deepfake_nb.detectors.corpus import STORED, face_points
from deepfake_nb.detectors.detector_training import DetectorSettings
from deepfake_nb.evaluation.metrics import auc_by_person
from deepfake_nb.people.self_blending import BlendSettings
from deepfake_nb.sections import pretrained_encoder
from deepfake_nb.sections import self_blending as self_blending_study
from deepfake_nb.sections.pretrained_encoder import (
    PREDICTION_COLUMNS,
    SOURCE_WORDS,
    compute_block_features,
    describe_row,
    held_out_scores,
    load_encoder,
    people_folds,
    read_held_out,
    trained_detectors,
)
from deepfake_nb.sections.self_blending import (
    BlendedPairs,
    batches_ahead,
    make_network,
    mean_auc,
    sample_some,
    score_files,
    sources_and_methods,
    store_face,
    train_on_blends,
)
from deepfake_nb.study.files import InputError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Stored faces of noise, each around a level of its own."""
    folder, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    paths = [folder / f"{number}.npz" for number in range(4)]
    for number, path in enumerate(paths):
        face = np.clip(rng.normal(60 + 40 * number, 30, (STORED, STORED, 3)), 0, 255).astype(np.uint8)
        store_face(path, face, np.float32(face_points() + 32))
    return [str(path) for path in paths]


# --- Self-blended pairs ---------------------------------------------------------------------------------------------


def test_pairs_depend_on_seed_and_step_and_not_on_threads(files):
    settings = DetectorSettings(steps=5, pairs=2)
    pairs = BlendedPairs(files, 32, seed=1)
    plain = [pairs.batch(step, 2) for step in range(5)]
    for workers in (1, 3, 8):
        ahead = list(batches_ahead(pairs, settings, workers))
        assert len(ahead) == 5 and all((a == b).all() for one, two in zip(ahead, plain, strict=True) for a, b in zip(one, two, strict=True))  # fmt: skip
    assert (BlendedPairs(files, 32, seed=2).batch(0, 2)[0] != plain[0][0]).any()
    assert plain[0][0].shape == (4, 32, 32, 3) and plain[0][1].tolist() == [0, 1, 0, 1]


def test_pairs_without_any_change_cannot_be_told_apart(files):
    nothing = BlendSettings(colours=False, texture=False, movement=False)
    images, _ = BlendedPairs(files, 48, 0, nothing).batch(0, 4)
    assert np.abs(images[::2].astype(int) - images[1::2]).mean() < 1


def test_a_training_is_the_same_for_a_seed_and_changes_the_network(files):
    settings = DetectorSettings(steps=2, pairs=2, learning_rate=1e-3, warmup=1)
    found = []
    for _ in range(2):
        network = make_network("resnet10t", 32, seed=5)
        losses = train_on_blends(network, BlendedPairs(files, 32, 0), settings, workers=2)
        found.append((losses, score_files(network, files, 32, 2).tolist()))
    assert found[0] == found[1] and len(found[0][0]) == 2 and not network.training
    assert score_files(make_network("resnet10t", 32, seed=5).eval(), files, 32, 2).tolist() != found[0][1]


def test_scores_do_not_depend_on_how_many_files_are_read_at_once(files):
    network = make_network("resnet10t", 32, seed=0).eval()
    one, all_ = (score_files(network, files, 32, 1, batch_size=size) for size in (1, 64))
    assert one == pytest.approx(all_, abs=1e-5) and ((one > 0) & (one < 1)).all()


# --- Choosing and measuring -----------------------------------------------------------------------------------------


def judged(sources=2, people=6, gap=1.0, seed=0):
    """A genuine and a forged file of each person in each source; forgeries score `gap` higher."""
    rng = np.random.default_rng(seed)
    rows = [(f"s{s}", f"s{s}p{p}", label) for s in range(sources) for p in range(people) for label in (0, 1)]
    table = pd.DataFrame(rows, columns=["source", "person", "label"])
    table["method"] = np.where(table.label == 1, "swap", "original")
    return table.assign(score=gap * table.label + rng.normal(0, 1, len(table)))


def test_some_files_are_spread_over_people_and_the_same_for_a_seed():
    table = pd.concat([judged().assign(take=take) for take in range(5)], ignore_index=True)
    one, again = (sample_some(table, 6, np.random.default_rng(2)) for _ in range(2))
    assert one.equals(again) and (one.groupby(["source", "label"]).person.nunique() == 6).all()
    assert len(sample_some(table, 10**6, np.random.default_rng(2))) == len(table)


def test_the_mean_auc_is_the_mean_of_the_sources_and_sources_without_forgeries_do_not_count():
    table = judged()
    singles = [auc_by_person(part, 50).value for _, part in table.groupby("source")]
    more = pd.concat([table, judged(1).query("label == 0").assign(source="genuine only")])
    values, drawn = mean_auc(more, ["score"], 50, np.random.default_rng(0))
    assert values[0] == pytest.approx(np.mean(singles)) and drawn.shape == (1, 50)


def test_equal_scores_have_no_difference_in_any_resample():
    table = judged().assign(same=lambda t: 3 * t.score + 1)
    _, drawn = mean_auc(table, ["score", "same"], 40, np.random.default_rng(1))
    assert drawn[0] == pytest.approx(drawn[1])


def test_methods_are_named_only_where_there_are_several():
    table = pd.concat([judged(1), judged(1).query("label == 1").assign(method="reenactment")])
    found = {row: (len(part), part.label.nunique()) for row, part in sources_and_methods(table)}
    assert found == {"s0": (18, 2), "s0: reenactment": (12, 2), "s0: swap": (12, 2)}
    assert [row for row, _ in sources_and_methods(judged(1))] == ["s0"]


def test_folds_share_nobody_and_every_row_is_scored_by_a_model_that_did_not_see_it():
    table = judged(3, 12)
    folds = people_folds(table, 3, seed=0)
    assert set(folds) == {0, 1, 2}
    assert all(len(set(folds[table.person == person])) == 1 for person in table.person)
    leak = np.eye(len(table))  # each row can only be told by having seen it
    assert set(held_out_scores(leak, table, folds).round(1)) == {0.5}
    honest = np.column_stack([table.label, np.zeros(len(table))])
    assert auc_by_person(table.assign(score=held_out_scores(honest, table, folds)), 50).value == 1
    assert np.isnan(held_out_scores(honest, table, folds, table.label == 1)).all()


# --- Features -------------------------------------------------------------------------------------------------------


def test_features_are_computed_once_and_read_back(files, tmp_path, monkeypatch):
    encoder = load_encoder("rendered-faces")
    first = compute_block_features(encoder, files, 1, tmp_path, batch_size=3)
    next(tmp_path.glob("*.npz")).write_bytes(b"damaged")
    compute_block_features(encoder, files, 1, tmp_path)
    assert [part.shape[0] for part in first] == [4] * len(encoder.blocks)

    def refuse(*arguments):
        raise AssertionError("it was embedded again")

    monkeypatch.setattr(pretrained_encoder, "embed", refuse)
    again = compute_block_features(encoder, files[::-1], 1, tmp_path)
    assert all((one == two[::-1]).all() for one, two in zip(first, again, strict=True))
    with pytest.raises(AssertionError, match="embedded again"):
        compute_block_features(encoder._replace(digest="another"), files, 1, tmp_path)


def test_an_unknown_encoder_is_refused():
    with pytest.raises(UsageError, match="none of auto, clip-vit-b16, rendered-faces"):
        load_encoder("resnet")


@pytest.mark.slow
def test_clip_gives_the_class_token_of_each_block(encoder_files, tmp_path, monkeypatch):
    """Its last one, normalised and projected, is what the whole encoder outputs."""
    monkeypatch.setattr(pretrained_encoder, "fetch", encoder_files)
    monkeypatch.setattr("deepfake_nb.networks.face_encoder.has_bf16", lambda device: False)
    encoder = load_encoder("clip-vit-b16")
    face = np.random.default_rng(0).integers(0, 256, (1, STORED, STORED, 3), dtype=np.uint8)
    found = pretrained_encoder.embed(encoder, face)
    assert [part.shape for part in found] == [(1, 768)] * 12 and len(encoder.blocks) == 12
    with torch.inference_mode():
        pixels = pretrained_encoder.clip_input(np.ascontiguousarray(face[:, 32:-32, 32:-32]))
        projected = encoder.network.head(encoder.network.norm(torch.from_numpy(found[-1])))
        assert projected.numpy() == pytest.approx(encoder.network(pixels).numpy(), abs=1e-3)


# --- Predictions of a trained detector ------------------------------------------------------------------------------


def predictions(**changes):
    table = judged(1).assign(task="edited", kind="video", held_out="people", detector="d")
    table["media"] = [f"{row.person}/{row.label}.mp4" for row in table.itertuples()]
    return table.assign(**({"score": table.score.rank(pct=True)} | changes))


def test_predictions_are_read_as_they_were_written(tmp_path):
    table = pd.concat([predictions(), predictions(held_out="source", method="NA")])
    table.to_csv(tmp_path / "predictions.csv", index=False)
    found = read_held_out(tmp_path / "predictions.csv")
    assert set(PREDICTION_COLUMNS) <= set(found) and len(found) == len(table)
    assert found.score.tolist() == pytest.approx(table.score.tolist()) and set(found.method) == {
        "swap",
        "original",
        "NA",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": 1.2}, "a score outside of 0 to 1"),
        ({"score": np.nan}, "a score outside of 0 to 1"),
        ({"score": "high"}, "cannot be read"),
        ({"label": 2}, "neither 0 nor 1"),
        ({"held_out": "nobody"}, 'something else than "people" or "source"'),
        ({"media": "a.mp4"}, "twice the same held_out, such as for 'a.mp4'"),
    ],
)
def test_predictions_that_cannot_be_are_a_sentence(tmp_path, changes, words):
    predictions(**changes).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match=words):
        read_held_out(tmp_path / "p.csv")


def test_files_of_another_kind_are_a_sentence(tmp_path):
    for content in (b"", b"\xff\xfe\x00", b"media,source\na,b\n"):
        (tmp_path / "p.csv").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_held_out(tmp_path / "p.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_held_out(tmp_path / "absent.csv")


def test_detectors_are_found_by_their_folder(tmp_path):
    assert trained_detectors(tmp_path) == trained_detectors(None) == {}
    file = tmp_path / "reports" / "detectors" / "edited-faces" / "predictions.csv"
    file.parent.mkdir(parents=True)
    file.touch()
    assert trained_detectors(tmp_path) == {"edited-faces": file}


def test_sources_are_said_in_words():
    assert (
        describe_row("ffpp_c40") == "FF++ c40"
        and describe_row("ffpp_c23: Deepfakes") == "FF++ c23: Deepfakes"
    )
    assert len(set(SOURCE_WORDS.values())) == len(SOURCE_WORDS)


def test_without_a_file_of_both_labels_there_is_no_auc_and_a_reason():
    found = auc_by_person(judged().query("label == 1"), 20)
    assert found.value is None and "no genuine file" in found.reason
    with pytest.raises(InputError, match="no AUC"):
        self_blending_study.mean_auc(judged().query("label == 0"), ["score"], 5, np.random.default_rng(0))
