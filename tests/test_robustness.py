"""Robustness: what is drawn by chance, which answers are refused, and intervals that belong together."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from deepfake_nb.evaluation.comparison import delong
from deepfake_nb.evaluation.metrics import bootstrap, evaluate
from deepfake_nb.evaluation.robustness import (
    ALL_AXES,
    AXES,
    Axis,
    area_under_robustness,
    choose_axes,
    degrade_along,
    describe_robustness,
    plot_robustness,
    record_robustness,
    resize_to,
    robustness_curves,
    robustness_gain,
    robustness_predictions,
    thin_axes,
)
from deepfake_nb.learning.clips import reduce_crops
from deepfake_nb.media.video import recompress_frames
from deepfake_nb.study.files import InputError, UsageError
from deepfake_nb.study.records import RunRecord

QUICK = {name: thin_axes(2)[name] for name in ("noise", "blur", "low light", "frame drops")}


def made_clips(count, frames=3, side=48, seed=0):
    """Smooth moving images, uint8 (count, frames, side, side, 3)."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:side, :side] / side
    phase = rng.uniform(0, 6, (count, 1, 1, 1, 3)) + 0.4 * np.arange(frames)[:, None, None, None]
    wave = np.sin(7 * down[..., None] + phase) * np.cos(9 * across[..., None] + phase)
    return np.round(127 + 100 * wave).astype(np.uint8)


def brightness(clips):
    return clips.mean(tuple(range(1, clips.ndim))) / 255


def ask(clips, score=brightness, **changed):
    names = [f"clip {at}" for at in range(len(clips))]
    about = {
        "labels": np.arange(len(clips)) % 2,
        "media_ids": names,
        "detector": "d",
        "train_set": "t",
        "eval_set": "e",
    }
    return robustness_predictions(
        score, clips, **(about | {"axes": QUICK, "rng": np.random.default_rng(1)} | changed)
    )


def made_table(
    n=40, levels=4, gap=1.0, same=False, people=None, axes=("blur", "noise"), detector="d", seed=0
):
    """Predictions of a detector whose fakes score higher by a gap that shrinks from level to level, or stays the same."""
    rng, rows = np.random.default_rng(seed), []
    labels = np.arange(n) % 2
    scores = rng.normal(gap * labels, 1)
    for axis in axes:
        for level in range(levels):
            worn = scores if same else rng.normal(gap * labels * (1 - level / levels), 1)
            rows.append(pd.DataFrame({
                "media_id": [f"m{at:03d}" for at in range(n)], "unit": 0, "label": labels, "score": 1 / (1 + np.exp(-worn)),
                "detector": detector, "train_set": "t", "eval_set": "e", "axis": axis, "level": level,
                "strength": AXES[axis].levels[level - 1] if level else np.nan,
            } | ({} if people is None else {"person": people})))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


# --- axes -----------------------------------------------------------------------------------------------------------


def test_axes_are_what_they_say():
    clip = made_clips(1, frames=12, side=64)[0]
    again = degrade_along(clip, "constant quality", 35, None)
    np.testing.assert_array_equal(again, recompress_frames(clip, 25, crf=35))
    thrice = degrade_along(clip, "re-encoding", 3, None)
    by_hand = clip
    for _ in range(3):
        by_hand = recompress_frames(by_hand, 25, crf=30)
    np.testing.assert_array_equal(thrice, by_hand)
    flat = np.full((1, 64, 64, 3), 128, np.uint8)
    assert abs(degrade_along(flat, "noise", 20, np.random.default_rng(0)).astype(float).std() - 20) < 1
    lost = degrade_along(clip, "frame drops", 60, np.random.default_rng(0))
    shown = [next(at for at, frame in enumerate(clip) if (frame == one).all()) for one in lost]
    assert shown[0] == 0 and (np.diff(shown) >= 0).all() and len(set(shown)) < 12


def test_the_bitrate_of_a_call_is_kept():
    noisy = np.random.default_rng(0).integers(0, 256, (10, 128, 128, 3), dtype=np.uint8)
    errors = [
        np.abs(degrade_along(noisy, "bitrate", rate, np.random.default_rng(0)).astype(float) - noisy).mean()
        for rate in (4000, 400)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("name", AXES)
def test_every_axis_keeps_shape_and_odd_sides(name):
    clip = made_clips(1, frames=4, side=49)[0]
    for pictures in (clip, clip[0]):
        worn = degrade_along(pictures, name, AXES[name].levels[0], np.random.default_rng(0))
        assert worn.shape == pictures.shape and worn.dtype == np.uint8


def test_what_is_no_picture_or_no_axis_is_refused():
    with pytest.raises(InputError, match=r"uint8 .* not float64 \(4, 4, 3\)"):
        degrade_along(np.zeros((4, 4, 3)), "blur", 1, None)
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        degrade_along(np.zeros((4, 4), np.uint8), "blur", 1, None)
    with pytest.raises(UsageError, match=r"no axis 'fog'\. Choose from: constant quality, bitrate"):
        degrade_along(np.zeros((4, 4, 3), np.uint8), "fog", 1, None)
    with pytest.raises(UsageError, match="a level at least, not 0"):
        thin_axes(0)


def test_fewer_levels_end_with_the_severest():
    for count in (1, 2, 3, 4, 9):
        for name, axis in thin_axes(count).items():
            assert len(axis.levels) == min(count, 4) and axis.levels[-1] == AXES[name].levels[-1]
            assert list(axis.levels) == [level for level in AXES[name].levels if level in axis.levels]
    assert [len(choose_axes(profile)["blur"].levels) for profile in ("smoke", "demo", "gpu", "paper")] == [
        1,
        2,
        4,
        4,
    ]


def test_faces_are_shrunk_as_clips_are():
    clips = made_clips(2, side=48)
    np.testing.assert_array_equal(resize_to(clips, 20), np.stack([reduce_crops(clip, 20) for clip in clips]))
    np.testing.assert_array_equal(resize_to(clips[:, 0], 20), resize_to(clips, 20)[:, 0])
    assert resize_to(clips, 48) is clips and resize_to(clips, 60).shape == (2, 3, 60, 60, 3)


# --- asking ---------------------------------------------------------------------------------------------------------


def test_chance_depends_on_the_clip_and_not_on_what_is_beside_it():
    clips = made_clips(6)
    table = ask(clips)
    for other in (ask(clips, batch=1), ask(clips, batch=4, threads=1)):
        pd.testing.assert_frame_equal(table, other)
    some = [4, 1]
    few = ask(clips[some], media_ids=["clip 4", "clip 1"], labels=[0, 1])
    both = few.merge(table, on=["media_id", "axis", "level"], suffixes=("", "_all"))
    assert len(both) == len(few) and (both.score == both.score_all).all()
    assert not np.allclose(table.score, ask(clips, rng=np.random.default_rng(2)).score)


def test_noise_falls_on_the_same_places_at_every_level():
    flat, seen = np.full((1, 8, 8, 3), 128, np.uint8), []
    ask(
        flat,
        lambda stills: seen.append(stills[0]) or np.zeros(len(stills)),
        axes={"noise": AXES["noise"]},
        labels=[0],
    )
    mild, severe = (pictures.astype(float) - 128 for pictures in (seen[1], seen[4]))
    assert np.corrcoef(mild.ravel(), severe.ravel())[0, 1] > 0.98 and severe.std() > 6 * mild.std()


def test_rows_are_complete_and_untouched_ones_are_untouched():
    clips = made_clips(4)
    table = ask(clips, lambda c: np.column_stack([brightness(c), 1 - brightness(c)]), detector=["a", "b"],
                train_set=["x", "y"], people=["p", "p", "q", "q"], media_ids=["m", "m", "n", "o"], labels=[1, 1, 0, 0])  # fmt: skip
    assert len(table) == 2 * 4 * len(QUICK) * 3 and not table.drop(columns="strength").isna().any(axis=None)
    assert table.strength.isna().equals(table.level == 0)
    assert set(zip(table.detector, table.train_set, strict=True)) == {("a", "x"), ("b", "y")}
    assert table[table.media_id == "m"].unit.unique().tolist() == [0, 1]
    plain = table[(table.level == 0) & (table.axis == "noise") & (table.detector == "a")]
    np.testing.assert_allclose(plain.score, brightness(clips))
    assert plain.person.tolist() == ["p", "p", "q", "q"]


def test_stills_have_no_motion_to_lose():
    stills = made_clips(2)[:, 0]
    assert set(ask(stills).axis) == {"noise", "blur", "low light"}
    with pytest.raises(UsageError, match="no axis to measure along"):
        ask(stills, axes={"frame drops": AXES["frame drops"]})


@pytest.mark.parametrize(("score", "words"), [
    (lambda clips: brightness(clips) * 3, "scores from 0 to 1"),
    (lambda clips: np.full(len(clips), np.nan), "scores from 0 to 1"),
    (lambda clips: np.zeros((len(clips), 2)), r"shape \(2, 1\), not shape \(2, 2\)"),
    (lambda clips: 0.5, "not shape ()"),
])  # fmt: skip
def test_outputs_that_are_no_scores_are_refused(score, words):
    with pytest.raises(InputError, match=words):
        ask(made_clips(2) // 2 + 127, score)


@pytest.mark.parametrize(("changed", "words"), [
    ({"labels": [0]}, "2 clips, but 1 in label"),
    ({"labels": [0, 2]}, "0 .real. or 1 .fake."),
    ({"media_ids": ["a", "b", "c"]}, "but 3 in media_id"),
    ({"people": ["a"]}, "but 1 in person"),
    ({"train_set": ["a", "b"]}, "1 detectors, but 2 training sets"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(changed, words):
    with pytest.raises(InputError, match=words):
        ask(made_clips(2), **changed)


def test_no_clips_and_clips_of_two_sizes_are_refused():
    with pytest.raises(InputError, match="no clips"):
        ask([])
    with pytest.raises(InputError, match=r"different shapes, such as \(3, 48, 48, 3\) and \(3, 50, 50, 3\)"):
        ask([*made_clips(1, side=50), *made_clips(1)])


def test_an_axis_of_ones_own():
    mirrored = Axis(
        "mirror",
        "Mirror",
        "times",
        (1, 2),
        lambda crops, strength, rng: crops[:, :, :: (-1) ** int(strength)],
    )
    table = ask(made_clips(4), lambda c: c[:, 0, 0, 0, 0] / 255.0, axes={"mirror": mirrored})
    score = table.pivot(index="media_id", columns="level", values="score")
    assert (score[0] == score[2]).all() and (score[0] != score[1]).any()
    words = describe_robustness(robustness_curves(pd.concat([table] * 1), resamples=50))
    assert list(words) == ["d, t -> e"]
    plt.close(plot_robustness(robustness_curves(table, resamples=50)))


# --- curves and areas -----------------------------------------------------------------------------------------------


def test_points_are_those_of_metrics():
    table = made_table()
    curves = robustness_curves(table, resamples=2000)
    for point in curves.itertuples():
        rows = table[(table.axis == point.axis) & (table.level == point.level)]
        found = evaluate(rows, resamples=2000).values["auc"]
        assert point.auc == pytest.approx(found.value) and point.n == 40
        assert point.low == pytest.approx(found.low, abs=0.02) and point.high == pytest.approx(
            found.high, abs=0.02
        )


def test_levels_and_axes_are_drawn_together():
    """Where every level has the same scores nothing is lost, in any draw; were levels drawn apart, the loss would spread."""
    curves = robustness_curves(made_table(same=True), resamples=300)
    areas = area_under_robustness(curves)
    start = curves[curves.level == 0].iloc[0]
    assert areas.axis.tolist() == ["blur", "noise", ALL_AXES]
    np.testing.assert_allclose(areas.area, start.auc)
    np.testing.assert_allclose(areas[["low", "high"]], [[start.low, start.high]] * 3)
    assert (areas.lost.abs() < 1e-12).all() and areas.lost_low.isna().all()


def test_intervals_of_an_area_hold_the_truth():
    """Two normals that are a gap apart have the AUC that the normal distribution gives at gap / sqrt(2)."""
    truth = np.average(norm.cdf(1.5 * np.array([1, 0.75, 0.5, 0.25]) / np.sqrt(2)), weights=[0.5, 1, 1, 0.5])
    ends = []
    for seed in range(40):
        table = made_table(n=60, gap=1.5, axes=("blur",), seed=seed)
        ends.append(area_under_robustness(robustness_curves(table, resamples=200))[["low", "high"]].iloc[0])
    ends = np.array(ends, float)
    assert 0.85 <= ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    assert (ends[:, 1] - ends[:, 0]).mean() < 0.2


def test_a_gain_is_paired():
    """A detector that is a little better on every face is better with certainty, although both areas overlap widely."""
    table = made_table(n=30, gap=1.0, same=True)
    better = table.assign(
        detector="better", score=(table.score + np.where(table.label, 0.06, -0.06)).clip(0, 1)
    )
    curves = robustness_curves(pd.concat([table, better]), resamples=400)
    a, b = (curves[curves.detector == name] for name in ("d", "better"))
    gain, areas = robustness_gain(a, b), area_under_robustness(curves).set_index(["detector", "axis"])
    assert 0 < gain.low <= gain.value <= gain.high < 0.3
    assert areas.loc[("d", ALL_AXES), "high"] > areas.loc[("better", ALL_AXES), "low"]
    assert gain.high - gain.low < 0.6 * (areas.high - areas.low).max()
    with pytest.raises(InputError, match="same media"):
        robustness_gain(a, b[b.axis == "blur"])


def test_people_are_drawn_where_they_are_known():
    """Ten people with ten images each, all alike: an audience of ten, not of a hundred."""
    people = np.repeat([f"p{at}" for at in range(10)], 10)
    table = made_table(n=100, people=people, same=True)
    rng = np.random.default_rng(0)
    person_says = dict(zip(people, np.repeat(rng.normal(size=10), 10), strict=True))
    table["score"] = 1 / (1 + np.exp(-(table.person.map(person_says) + 0.3 * table.label)))
    by_person = robustness_curves(table).iloc[0]
    by_file = robustness_curves(table.drop(columns="person")).iloc[0]
    assert (by_person.n_drawn, by_file.n_drawn, by_person.n) == (10, 100, 100)
    assert abs(by_person.auc - by_file.auc) < 1e-12 and by_person.low != by_file.low
    of_metrics = bootstrap(
        table[(table.axis == "blur") & (table.level == 0)], clusters="person", rng=np.random.default_rng(3)
    )
    assert by_person.low == pytest.approx(of_metrics.auc.quantile(0.025), abs=0.02)


def test_clips_of_a_file_are_pooled():
    table = made_table(n=8, levels=2)
    twice = pd.concat(
        [table.assign(score=table.score * 0.5, unit=0), table.assign(score=table.score * 0.5 + 0.5, unit=1)]
    )
    once = table.assign(score=table.score * 0.5 + 0.25)
    left, right = (robustness_curves(t, resamples=50) for t in (twice, once))
    pd.testing.assert_frame_equal(left.drop(columns="resampled"), right.drop(columns="resampled"))


def test_a_faultless_detector_has_an_interval_and_a_lonely_file_none():
    people = np.repeat([f"p{at}" for at in range(12)], 2)
    table = made_table(n=24, levels=2, people=people).assign(score=lambda t: t.label * 0.8 + 0.1)
    curves = robustness_curves(table, resamples=100)
    assert (curves.auc == 1).all() and np.allclose(curves.low, 0.025 ** (1 / 12)) and (curves.high == 1).all()
    areas = area_under_robustness(curves)
    assert np.allclose(areas.low, 0.025 ** (1 / 12)) and (areas.lost == 0).all()
    lonely = robustness_curves(made_table(n=2, levels=2), resamples=50)
    assert lonely.low.isna().all() and area_under_robustness(lonely).low.isna().all()


def test_delong_counts_people_of_both_classes_for_either():
    area = delong([0, 1] * 6, [0.1, 0.9] * 6, np.arange(12) // 2)
    assert area.low == pytest.approx(0.025 ** (1 / 6)) and area.high == 1


def test_levels_of_other_media_are_refused():
    table = made_table(n=8, levels=3)
    with pytest.raises(InputError, match="'d' along 'blur' not every level"):
        robustness_curves(table[~((table.level == 1) & (table.media_id == "m003"))])
    with pytest.raises(InputError, match="not every level"):
        robustness_curves(table[table.level > 0])
    with pytest.raises(InputError, match="no column 'axis'"):
        robustness_curves(table.drop(columns="axis"))


# --- words, figures, results ----------------------------------------------------------------------------------------


def test_words_follow_the_rule():
    said = describe_robustness(robustness_curves(made_table(n=200, gap=2.5), resamples=200))["d, t -> e"]
    assert "without degradation; above chance" in said and "of the mean AUC." in said
    guess = describe_robustness(robustness_curves(made_table(gap=0.0), resamples=200))["d, t -> e"]
    assert guess.endswith("not above chance, so no degradation can lower it.")
    few = describe_robustness(robustness_curves(made_table(n=8), resamples=50))["d, t -> e"]
    assert "on 8 people or files" in few and "too few" in few


def test_a_level_that_recovers_does_not_count_as_lost():
    curves = robustness_curves(made_table(n=60, gap=4.0, same=True, axes=("blur",)), resamples=50)
    dip = curves.assign(low=[0.9, 0.4, 0.9, 0.9])
    assert "above chance at the severest level of blur" in describe_robustness(dip)["d, t -> e"]
    gone = curves.assign(low=[0.9, 0.9, 0.4, 0.4])
    assert "from this level on: blur (1 % of the side)" in describe_robustness(gone)["d, t -> e"]


def test_results_are_json_whatever_is_missing(tmp_path):
    record = RunRecord("fusion", "smoke")
    tables = [made_table(n=2, levels=2), made_table(n=40, levels=2, detector="other")]
    record_robustness(record.add, robustness_curves(pd.concat(tables), resamples=50))
    record.write(tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["metric"] for row in found[:3]] == ["mean AUC, blur", "mean AUC, noise", "mean AUC, all axes"]
    assert found[0]["low"] is None and found[-1]["low"] < found[-1]["value"] < found[-1]["high"]
    assert "lost [" in found[-1]["note"]


@pytest.mark.parametrize("n", [6, 24])
def test_files_of_one_class_only_have_no_area_and_a_sentence(tmp_path, n):
    curves = robustness_curves(made_table(n=n, levels=2).assign(label=1), resamples=20)
    areas = area_under_robustness(curves)
    assert areas[["untouched", "area", "low", "high", "lost"]].isna().all(axis=None)
    assert describe_robustness(curves)["d, t -> e"].endswith("all real or all fake.")
    record = RunRecord("fusion", "smoke")
    record_robustness(record.add, curves)
    record.write(tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert all(row["value"] is None and row["note"] == "undefined" for row in found)
    plt.close(plot_robustness(curves))


def test_figure_names_what_differs():
    tables = [made_table(n=20, detector=name).assign(train_set="x") for name in ("b", "a")]
    tables[0] = tables[0][tables[0].axis != "noise"]
    figure = plot_robustness(robustness_curves(pd.concat(tables), resamples=50))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a"]
    colours = [
        {line.get_label(): line.get_color() for line in axes.lines if line.get_label() in "ab"}
        for axes in figure.axes
    ]
    assert set(colours[0]) == {"a", "b"} and colours[1] == {"a": colours[0]["a"]}
    assert [axes.get_title() for axes in figure.axes] == ["Blur", "Noise"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["none", "0.5", "1", "2"]
    plt.close(figure)
