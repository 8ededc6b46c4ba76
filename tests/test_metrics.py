"""Metrics: bad input gets a sentence, the command line reads what others publish, and formulas meet brute force."""

import bz2
import gzip
import json
import lzma
import math

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import pytest
from commands import status_of
from scipy.stats import norm

from deepfake_nb.evaluation import metrics
from deepfake_nb.evaluation.comparison import (
    bootstrap_test,
    compare,
    correct_by_holm,
    delong,
    delong_test,
    paired_tests,
)
from deepfake_nb.evaluation.curves import (
    plot_confusion,
    plot_det,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
    plot_scores,
)
from deepfake_nb.evaluation.decisions import decision_threshold, fit_calibration, read_calibration
from deepfake_nb.evaluation.metrics import (
    METRICS,
    Measured,
    Undefined,
    auc,
    bootstrap,
    bootstrap_mean,
    evaluate,
    evaluate_by,
    expected_calibration_error,
)
from deepfake_nb.evaluation.predictions import check_predictions, list_doubts, pool, read_predictions
from deepfake_nb.study.files import InputError, UsageError

# Mean predictions per video that the conferencing paper's authors published for their Zoom hold-out set (66 videos):
# AltFreezing as released, and fine-tuned by alternate freezing. 36 real ones, then 30 fakes.
BASE = [
    0.050718, 0.022457, 0.012668, 0.013896, 0.060537, 0.039567, 0.016145, 0.003609, 0.014567, 0.021923, 0.086256,
    0.168305, 0.043060, 0.004927, 0.008492, 0.009651, 0.150928, 0.455202, 0.190269, 0.114432, 0.200560, 0.245218,
    0.197873, 0.615605, 0.144085, 0.011204, 0.012373, 0.004641, 0.027129, 0.045242, 0.004919, 0.520696, 0.529707,
    0.027120, 0.015956, 0.373498,
    0.161832, 0.529660, 0.684003, 0.761976, 0.904229, 0.056730, 0.032116, 0.043722, 0.220218, 0.316653, 0.204191,
    0.122298, 0.019706, 0.045428, 0.064573, 0.748834, 0.048662, 0.493678, 0.755420, 0.350328, 0.983861, 0.065857,
    0.566218, 0.939810, 0.324794, 0.947511, 0.519904, 0.852360, 0.626707, 0.181385,
]  # fmt: skip
ALTERNATE = [
    0.176321, 0.058026, 0.237497, 0.128645, 0.068346, 0.124062, 0.063405, 0.064739, 0.066090, 0.156256, 0.321440,
    0.342078, 0.258883, 0.042946, 0.102675, 0.070766, 0.199095, 0.431882, 0.240232, 0.450222, 0.378698, 0.520799,
    0.124204, 0.756652, 0.096249, 0.147501, 0.078788, 0.134250, 0.511849, 0.017912, 0.040387, 0.961367, 0.980900,
    0.745531, 0.599547, 0.205448,
    0.821331, 0.722799, 0.675599, 0.872635, 0.888489, 0.615828, 0.607838, 0.673369, 0.489411, 0.405717, 0.755647,
    0.403666, 0.428459, 0.304852, 0.507696, 0.859364, 0.584303, 0.724394, 0.536992, 0.526507, 0.969426, 0.406553,
    0.710618, 0.965763, 0.723838, 0.953851, 0.253723, 0.989482, 0.695848, 0.319968,
]  # fmt: skip


def table(n=40, frames=1, seed=0, gap=1.5, **columns):
    """Half real, half fake; scores in (0, 1)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n // 2)
    logits = (
        gap * (labels - 0.5)[:, None] + rng.standard_normal((n, 1)) + 0.5 * rng.standard_normal((n, frames))
    )
    return pd.DataFrame(
        {
            "media_id": np.repeat([f"{i:03d}.mp4" for i in range(n)], frames),
            "unit": np.tile(np.arange(frames), n),
            "label": labels.repeat(frames),
            "score": 1 / (1 + np.exp(-logits.ravel())),
            **columns,
        }
    )


def write_published(path, scores):
    """A file as the conferencing paper's authors write it."""
    records = [
        {
            "filename": f"{i}.mp4",
            "mean_prediction": score,
            "ground_truth": i >= 36,
            "predicted_fake": score > 0.1,
        }
        for i, score in enumerate(scores)
    ]
    path.write_text(
        json.dumps({"metadata": {"threshold": 0.1}, "video_results": records, "summary": {"n": 66}})
    )
    return path


def finite(value):
    """No NaN or infinity anywhere in JSON-like values."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


# Re-analysis of published predictions


@pytest.fixture
def published(tmp_path):
    return write_published(tmp_path / "base.json", BASE), write_published(
        tmp_path / "alternate.json", ALTERNATE
    )


def test_published_records_by_named_columns(published, tmp_path, capsys):
    names = ("--label", "ground_truth", "--score", "mean_prediction", "--id", "filename")
    command = ("evaluate", published[0], *names, "--threshold", 0.1, "--compare", published[1])
    assert status_of(*command, "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["n"], found["n_fake"]) == (66, 30)
    assert found["majority_rate"] == pytest.approx(36 / 66)
    assert found["auc"]["value"] == pytest.approx(0.81389, abs=1e-5)  # their summary's auc_score
    assert (found["auc"]["low"], found["auc"]["high"]) == pytest.approx((0.709, 0.900), abs=0.012)
    assert sum(map(sum, found["confusion_matrix"])) == 66
    assert found["accuracy"] == pytest.approx(
        (found["confusion_matrix"][0][0] + found["confusion_matrix"][1][1]) / 66
    )
    formula, draws = found["comparison"]["tests"][:2]
    assert (formula["method"], draws["method"]) == ("DeLong", "bootstrap")
    for test in (formula, draws):
        assert test["b"] == pytest.approx(0.85833, abs=1e-5)
        assert (test["low"], test["high"]) == pytest.approx((-0.051, 0.144), abs=0.012)
        assert test["p_value"] > 0.2
    shown = capsys.readouterr().out
    assert "66 media files" in shown and "0.814" in shown and "nan" not in shown.lower()


def test_published_records_by_guessed_columns(published, tmp_path):
    assert status_of("evaluate", published[0], "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["auc"]["value"] == pytest.approx(0.81389, abs=1e-5)
    assert {"n", "n_fake", "majority_rate", "threshold", "auc", "average_precision", "f1", "accuracy",
            "equal_error_rate", "confusion_matrix"} <= set(found)  # fmt: skip
    assert isinstance(found["f1"], float) and isinstance(found["equal_error_rate"], float)


EXPORTS = {
    "semicolons and decimal commas": "media_id;label;score\n007;1;0,75\nb;0;1\n",
    "a line that names the separator": "sep=;\r\nmedia_id;label;score\r\n007;1;0.75\r\nb;0;1\r\n",
    "a comma behind each row": "media_id,label,score\n007,1,0.75,\nb,0,1,\n",
    "comment lines": "# run 3\n# 2 files\nmedia_id,label,score\n007,1,0.75\nb,0,1\n",
    "tabs in a CSV file": "media_id\tlabel\tscore\n007\t1\t0,75\nb\t0\t1\n",
    "decimal commas in quotes": 'media_id,label,score\n007,1,"0,75"\nb,0,1\n',
    "a quoted line that names the separator": '"sep=;"\nmedia_id;label;score\n007;1;0,75\nb;0;1\n',
    "comment lines below": "media_id,label,score\n007,1,0.75\n# from here, as said, run 4\nb,0,1\n# end\n",
    "percentages": 'media_id,label,score\n007,1,"75,0 %"\nb,0,100%\n',
    "bars": "media_id|label|score\n007|1|0.75\nb|0|1\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", EXPORTS.values(), ids=EXPORTS)
def test_what_spreadsheets_export_is_read(tmp_path, text, encoding):
    (tmp_path / "p.csv").write_bytes(text.encode(encoding))
    found = read_predictions(tmp_path / "p.csv")
    assert found[["media_id", "label", "score"]].values.tolist() == [["007", 1, 0.75], ["b", 0, 1.0]]


def test_windows_letters_hashes_in_names_and_compressed_tables_are_read(tmp_path):
    text = "media_id;label;score;note\n#caf\xe9,1.mp4;1;0,75;\n#b;0;1;\n"
    (tmp_path / "p.csv").write_bytes(text.encode("cp1252"))
    for name, opened in (("p.csv.gz", gzip.open), ("p.txt.xz", lzma.open), ("p.TSV.bz2", bz2.open)):
        with opened(tmp_path / name, "wb") as file:
            file.write(text.encode("cp1252"))
    for path in sorted(tmp_path.iterdir()):
        found = read_predictions(path)
        assert (found.media_id.tolist(), found.score.tolist()) == (["#caf\xe9,1.mp4", "#b"], [0.75, 1]), path


@pytest.mark.parametrize("orient", ["columns", "split", "index", "records", "table"])
def test_what_pandas_writes_as_json_is_read(tmp_path, orient):
    rows = table(6)[["media_id", "label", "score"]].set_index("media_id")
    (rows if orient != "records" else rows.reset_index()).to_json(tmp_path / "p.json", orient=orient)
    found = read_predictions(tmp_path / "p.json")
    assert found.media_id.tolist() == list(rows.index) and found.score.tolist() == pytest.approx(
        list(rows.score)
    )


def test_a_parquet_index_without_a_name_holds_the_ids(tmp_path):
    rows = table(6).set_index("media_id").rename_axis(None)
    rows.to_parquet(tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet").media_id.tolist() == list(rows.index)
    rows.reset_index(drop=True).assign(name=list("abcdef"))[::-1].to_parquet(tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet").media_id.tolist() == list("fedcba")


def test_a_comma_in_a_name_is_no_decimal_comma(tmp_path):
    (tmp_path / "p.csv").write_text("media_id;label;score;note\n1,5;1;0,75;a\nb;0;1;b\n")
    found = read_predictions(tmp_path / "p.csv")
    assert found.media_id.tolist() == ["1,5", "b"] and found.score.tolist() == [0.75, 1]


def test_json_lines_may_end_in_json_and_ids_may_be_an_index(tmp_path):
    rows = table(6).set_index("media_id")
    rows.reset_index().to_json(tmp_path / "p.json", orient="records", lines=True)
    rows.to_parquet(tmp_path / "p.parquet")
    for name in ("p.json", "p.parquet"):
        assert read_predictions(tmp_path / name).media_id.tolist() == list(rows.index)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(score=100 * t.score), "--threshold 50"),
        (lambda t: t.assign(label=1 - t.label), "invert one of them"),
        (lambda t: t.assign(prob=t.score, score=(t.score > 0.5).astype(float)), "--score prob"),
        (lambda t: t.assign(media_id=[f"v{n // 5}/{n}.png" for n in range(len(t))]), "--clusters folder"),
    ],
)
def test_what_looks_wrong_is_said(change, words):
    label = np.arange(40) % 2
    good = pd.DataFrame({"media_id": [f"{n}.mp4" for n in range(40)], "label": label, "score": 0.3 + 0.4 * label + np.linspace(0, 0.3, 40) % 0.2})  # fmt: skip
    assert list_doubts(good) == []
    (found,) = list_doubts(change(good))
    assert words in found


def test_the_folder_of_frames_can_be_resampled(tmp_path, capsys):
    frames = pd.DataFrame({"media_id": [f"v{n // 8}/{n}.png" for n in range(80)], "label": [n // 40 for n in range(80)], "score": np.linspace(0.2, 0.8, 80)})  # fmt: skip
    frames.to_csv(tmp_path / "p.csv", index=False)
    assert (
        status_of("evaluate", tmp_path / "p.csv") == 0
        and "80 images lie in 10 folders" in capsys.readouterr().err
    )
    assert status_of("evaluate", tmp_path / "p.csv", "--clusters", "folder") == 0
    assert "Note" not in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "json", "jsonl"])
def test_every_format_gives_the_same(tmp_path, ending):
    rows, path = table(10, 3), tmp_path / f"p.{ending}"
    if ending == "parquet":
        rows.to_parquet(path)
    elif ending.startswith("json"):
        rows.to_json(path, orient="records", lines=ending == "jsonl", double_precision=15)
    else:
        rows.to_csv(path, index=False, sep="," if ending == "csv" else "\t")
    read = read_predictions(path)
    assert read["media_id"].tolist() == rows["media_id"].tolist()
    assert (
        np.allclose(read["score"], rows["score"], atol=1e-12)
        and read["unit"].tolist() == rows["unit"].tolist()
    )


@pytest.mark.parametrize(
    "value",
    [
        {"a.mp4": {"label": 1, "score": 0.9}, "b.mp4": {"label": "REAL", "score": 0.2}},
        {"media_id": ["a.mp4", "b.mp4"], "label": [True, False], "score": [0.9, 0.2]},
        {
            "run": 3,
            "anything": [
                {"video": "a.mp4", "gt": 1.0, "prob": 0.9},
                {"video": "b.mp4", "gt": 0, "prob": 0.2},
            ],
        },
    ],
)
def test_shapes_of_json(tmp_path, value):
    (tmp_path / "p.json").write_text(json.dumps(value))
    read = read_predictions(tmp_path / "p.json")
    assert read[["media_id", "label", "score"]].values.tolist() == [["a.mp4", 1, 0.9], ["b.mp4", 0, 0.2]]


def test_ids_keep_their_zeros_and_words(tmp_path):
    (tmp_path / "p.csv").write_text("media_id,label,score\n007,1,0.5\nNA,0,.25\n1e3,0,1e-3\n")
    assert read_predictions(tmp_path / "p.csv")["media_id"].tolist() == ["007", "NA", "1e3"]


def test_a_named_column_wins_over_one_with_the_standard_name(tmp_path):
    (tmp_path / "p.csv").write_text("media_id,label,score,calibrated\na,1,5.0,0.9\nb,0,-2,0.1\n")
    assert read_predictions(tmp_path / "p.csv", score="calibrated")["score"].tolist() == [0.9, 0.1]


# Bad input


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("nothing.csv", None, "There is no file"),
        ("p.doc", "a", "is not one of .csv"),
        ("p.csv", "", "is empty"),
        ("p.csv", "media_id,label,score\n", "no rows"),
        ("p.csv", "media_id,label\na,1\n", "looks like the score"),
        ("p.csv", "label,score\n1,0.5\n", "Name it with --id"),
        (
            "p.csv",
            "media_id,label,score\na,1,0.5\nb,0,\n",
            "Row 2 (media file 'b'): score '' is not a finite",
        ),
        ("p.csv", "media_id,label,score\na,1,nan\n", "is not a finite number"),
        ("p.csv", "media_id,label,score\na,1,inf\n", "is not a finite number"),
        ("p.csv", "media_id,label,score\na,1,high\n", "score 'high' is not a finite number"),
        ("p.csv", "media_id,label,score\na,2,0.5\n", "label '2' is not 0 or 1"),
        ("p.csv", "media_id,label,score\na,1,0.5\na,0,0.5\n", "called real in one row and fake in another"),
        ("p.csv", "media_id,label,score\n,1,0.5\n", "no media_id"),
        ("p.csv", "media_id,unit,label,score\na,0,1,0.5\na,0,1,0.7\n", "unit 0 is there twice"),
        ("p.csv", b"\x89PNG\r\n\x1a\n\x00\xff", "cannot be read as CSV"),
        ("p.json", "{", "cannot be read as JSON"),
        ("p.json", "[]", "holds no list of records"),
        ("p.json", "3", "holds no list of records"),
        ("p.json", '[{"media_id": "a", "label": 1, "score": NaN}]', "is not a finite number"),
        ("p.json", '{"x": [{"a": 1}], "y": [{"a": 1}]}', "several lists of records (x, y)"),
        ("p.jsonl", "[1]\n{", "cannot be read as JSONL"),
        ("p.parquet", "no parquet", "cannot be read as PARQUET"),
    ],
)
def test_bad_files_leave_with_a_sentence(tmp_path, capsys, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert status_of("evaluate", path) == 3
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and sentence in said and "Traceback" not in said


@pytest.mark.parametrize(
    "arguments",
    [("--label", "truth"), ("--score", "p"), ("--id", "clip"), ("--by", "people"), ("--where", "people=a"),
     ("--where", "people"), ("--level", "folder"), ("--clusters", "people"), ("--threshold", "nan")],
)  # fmt: skip
def test_unknown_columns_are_usage_errors(tmp_path, capsys, arguments):
    table(10).to_csv(tmp_path / "p.csv", index=False)
    assert status_of("evaluate", tmp_path / "p.csv", *arguments) == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_where_without_rows(tmp_path, capsys):
    table(10, detector="a").to_csv(tmp_path / "p.csv", index=False)
    assert status_of("evaluate", tmp_path / "p.csv", "--where", "detector=b") == 3
    assert "no row whose detector is 'b'" in capsys.readouterr().err


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_undefined_with_a_reason(tmp_path, capsys, label):
    rows = table(20)
    rows[rows.label == label].to_csv(tmp_path / "p.csv", index=False)
    assert status_of("evaluate", tmp_path / "p.csv", "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["auc"]["value"] is None and "undefined" in found["auc"]["reason"]
    assert found["majority_rate"] == 1 and found["accuracy"] is not None
    for number in found["metrics"].values():
        assert number["value"] is not None or number["reason"]
    shown = capsys.readouterr().out
    assert "All labels are" in shown and "nan" not in shown.lower()


def test_a_detector_that_calls_everything_real():
    found = evaluate(table(20).assign(score=lambda rows: rows.score / 4))
    assert found.confusion_matrix == [[10, 0], [10, 0]]
    assert found.values["precision_fake"].value is None
    assert found.values["precision_fake"].reason == "Nothing is called fake at threshold 0.5."
    assert found.values["f1_fake"].value == 0 and found.values["recall_fake"].value == 0
    assert found.values["recall_fake"].high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert finite(found.as_dict()) and not found.table().isna().all(axis=1).any()


def test_tables_hold_none_rather_than_nan():
    for found in (evaluate(table(20).query("label == 1")), evaluate(table(20).assign(score=0.5))):
        cells = found.table().to_numpy().ravel()
        assert not any(isinstance(cell, float) and math.isnan(cell) for cell in cells)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_very_few_media(n):
    rows = table(40).iloc[[0, 39, 1, 38, 2][:n]]
    found = evaluate(rows, resamples=200)
    assert finite(found.as_dict()) and found.n == n
    assert all(
        number.low is None or number.low <= number.value <= number.high for number in found.values.values()
    )


def test_scores_beyond_zero_and_one_have_ranks_but_no_probabilities():
    rows = table(20).assign(score=lambda rows: 10 * rows.score - 5)
    found = evaluate(rows, threshold=0.0)
    assert found.values["auc"].value == pytest.approx(auc(rows.label, rows.score))
    assert "not between 0 and 1" in found.values["brier"].reason
    plot_scores(rows, 0.0)
    with pytest.raises(Undefined):
        plot_reliability(rows)


def test_mixed_detectors_are_refused_or_evaluated_separately(tmp_path, capsys):
    both = pd.concat([table(20, detector="a"), table(20, gap=3, detector="b")])
    with pytest.raises(InputError, match="mix several values of detector"):
        evaluate(both)
    both.to_parquet(tmp_path / "p.parquet")
    assert status_of("evaluate", tmp_path / "p.parquet", "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["of"] == {"detector": "a"} and found["n"] == 20
    assert [(group["group"], group["n"]) for group in found["groups"]] == [("a", 20), ("b", 20)]
    assert (
        status_of("evaluate", tmp_path / "p.parquet", "--where", "detector=b", "--json", tmp_path / "b.json")
        == 0
    )
    assert json.loads((tmp_path / "b.json").read_text())["auc"] == found["groups"][1]["auc"]
    assert "nan" not in capsys.readouterr().out.lower()


def test_the_same_id_in_two_test_sets_is_two_files():
    one, other = (
        table(20, eval_set="one"),
        table(20, eval_set="other", seed=1).assign(label=lambda rows: 1 - rows.label),
    )
    assert {name: found.n for name, found in evaluate_by(pd.concat([one, other])).items()} == {
        "one": 20,
        "other": 20,
    }


def test_methods_are_judged_against_all_genuine_media():
    rows = table(40)
    rows["method"] = np.where(rows.label == 0, None, np.where(rows.index % 2, "swap", "reenact"))
    found = evaluate_by(rows, "method")
    assert {name: (part.n, part.n_fake, part.of["method"]) for name, part in found.items()} == {
        "reenact": (30, 10, "reenact"),
        "swap": (30, 10, "swap"),
    }
    by_both = evaluate_by(pd.concat([rows.assign(detector=name) for name in "ab"]), "method")
    assert {part.n for part in by_both.values()} == {30} and len(by_both) == 4


def test_compare_refuses_what_cannot_be_matched():
    rows = table(20)
    with pytest.raises(InputError, match="no media file in common"):
        compare(rows, rows.assign(media_id="x" + rows.media_id))
    with pytest.raises(InputError, match="one table calls it real"):
        compare(rows, rows.assign(label=1 - rows.label))
    with pytest.raises(UsageError, match="no metric 'area'"):
        compare(rows, rows, metrics=["area"])
    only_fakes = compare(rows[rows.label == 1], rows)
    assert all(test.difference is not None or test.reason for test in only_fakes.tests) and finite(
        only_fakes.as_dict()
    )


def test_pooling_is_by_media_file_never_by_folder():
    rows = pd.DataFrame({"media_id": ["A/0.mp4", "A/1.mp4", "A/0.mp4"], "label": 1, "score": [0.0, 0.5, 1.0]})
    assert pool(rows)[["media_id", "score", "n_units"]].values.tolist() == [
        ["A/0.mp4", 0.5, 2],
        ["A/1.mp4", 0.5, 1],
    ]
    with pytest.raises(UsageError, match="no pooling 'folder'"):
        pool(rows, "folder")


def test_input_tables_are_left_as_they_are():
    rows = table(10, 2)
    before = rows.copy()
    evaluate(rows), pool(rows), check_predictions(rows), compare(rows, rows)
    pd.testing.assert_frame_equal(rows, before)


@pytest.mark.parametrize(
    "labels", [[0.5, 1, 0], ["real", "fake", "fake"], [0, 1, None], [0, 1, np.nan], [0, 1, 2]]
)
def test_labels_that_are_neither_0_nor_1_are_refused_and_not_cut_to_it(labels):
    with pytest.raises(InputError, match="Labels must be 0 or 1"):
        auc(labels, [0.1, 0.2, 0.3])
    assert auc([True, False, True], ["0.9", "0.1", "0.8"]) == 1


@pytest.mark.parametrize("confidence", [95, 0, 1, math.nan])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    rows = table(20)
    pair = rows.label, rows.score, table(20, seed=1).score
    options = {"confidence": confidence, "resamples": 10}
    for measure in (
        lambda: evaluate(rows, **options),
        lambda: bootstrap_mean(rows.score, **options),
        lambda: bootstrap_test(*pair, **options),
        lambda: delong(*pair[:2], confidence=confidence),
        lambda: delong([0, 0, 1, 1], [1, 2, 3, 4], confidence=confidence),
        lambda: delong_test(*pair, confidence=confidence),
    ):
        with pytest.raises(UsageError, match=r"confidence is .* such as 0\.95"):
            measure()


def test_no_resamples_are_too_few():
    rows = table(20)
    for measure in (evaluate, bootstrap, lambda rows, **options: compare(rows, rows, **options)):
        with pytest.raises(UsageError, match="resamples is 0"):
            measure(rows, resamples=0)


def test_rows_without_a_cluster_are_refused():
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.3, 0.8]
    for clusters in (["a", None, "b", "c"], ["a", "b", "c"]):
        for measure in (delong, lambda *given: bootstrap_test(given[0], *given[1:2] * 2, clusters=given[2])):
            with pytest.raises(
                InputError, match="4 rows need 4 clusters, and none may be missing; there are 3"
            ):
                measure(labels, scores, clusters)
        with pytest.raises(InputError, match="4 rows need 4 clusters"):
            bootstrap_mean(scores, clusters)


def test_detectors_without_a_training_set_meet_the_genuine_media_too():
    rows = table(40)
    rows["method"] = np.where(rows.label == 0, None, np.where(rows.index % 2, "swap", "reenact"))
    sets = {"released": None, "tuned": "zoom"}
    both = pd.concat([rows.assign(detector=name, train_set=value) for name, value in sets.items()])
    found = evaluate_by(both, "method", resamples=10)
    assert {(part.n, part.n_fake) for part in found.values()} == {(30, 10)} and len(found) == 4


def test_one_name_serves_where_several_do():
    rows = table(20, 2).assign(method="swap")
    assert pool(rows, by="method").equals(pool(rows, by=["method"]))
    with pytest.raises(UsageError, match="no column 'person'"):
        pool(rows, by="person")
    tests = compare(rows, rows, metrics="auc", resamples=10).tests
    assert [(test.metric, test.method) for test in tests] == [("auc", "DeLong"), ("auc", "bootstrap")]
    with pytest.raises(InputError, match="no column 'media_id'; they have none"):
        check_predictions(pd.DataFrame())


# Numbers against other ways to get them


def brute_force(labels, scores):
    """AUC, and the placements of fakes and real ones, from every pair."""
    fake, real = scores[labels == 1], scores[labels == 0]
    wins = (fake[:, None] > real) + 0.5 * (fake[:, None] == real)
    return wins.mean(), wins.mean(1), wins.mean(0)


@pytest.mark.parametrize("decimals", [8, 1])
def test_delong_against_every_pair(decimals):
    rng = np.random.default_rng(decimals)
    labels = np.repeat([1, 0], [25, 40])
    a, b = (np.round(gap * labels + rng.standard_normal(65), decimals) for gap in (0.8, 1.2))
    parts = [brute_force(labels, scores) for scores in (a, b)]
    covariance = sum(np.cov([part[k] for part in parts]) / len(parts[0][k]) for k in (1, 2))
    assert delong(labels, a).auc == pytest.approx(parts[0][0])
    assert delong(labels, a).variance == pytest.approx(covariance[0, 0])
    test = delong_test(labels, a, b)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert test.p_value == pytest.approx(2 * norm.sf(abs(parts[1][0] - parts[0][0]) / error))


def test_delong_with_clusters_is_that_of_pooled_rows_when_frames_agree():
    rows = table(40)
    thrice = rows.loc[rows.index.repeat(3)]
    assert delong(thrice.label, thrice.score, thrice.media_id) == pytest.approx(
        delong(rows.label, rows.score)
    )
    assert delong(thrice.label, thrice.score).variance < 0.4 * delong(rows.label, rows.score).variance


def test_people_with_real_and_fake_media_are_drawn_whole():
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(80), 2)
    rows = pd.DataFrame({"media_id": np.arange(160), "label": np.tile([0, 1], 80), "source_id": person})
    rows["score"] = rows.label + 2 * rng.standard_normal(80)[person] + 0.5 * rng.standard_normal(160)
    by_formula = delong(rows.label, rows.score, rows.source_id).variance
    by_draws = bootstrap(rows, resamples=4000, clusters="source_id").auc.var()
    assert np.sqrt(by_formula / by_draws) == pytest.approx(1, abs=0.06)
    assert by_formula < 0.5 * delong(rows.label, rows.score).variance  # who is hard is hard in both
    with pytest.raises(UsageError, match="no column 'people'"):
        bootstrap(rows, clusters="people")


def test_delong_at_the_ends():
    perfect = delong([0] * 10 + [1] * 20, np.arange(30))
    assert (perfect.auc, perfect.high) == (1, 1) and perfect.low == pytest.approx(0.025**0.1)
    with pytest.raises(Undefined, match="One fake media file"):
        delong([0, 0, 1], [1, 2, 3])
    opposite = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert opposite.p_value is None and "no variance" in opposite.reason


def test_the_bootstrap_test_rejects_rarely_without_a_difference():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    p_values = []
    for _ in range(120):
        shared = rng.standard_normal(60) + labels
        a, b = (shared + rng.standard_normal(60) for _ in range(2))
        p_values.append(bootstrap_test(labels, a, b, resamples=300).p_value)
    assert 0.0 <= np.mean(np.array(p_values) < 0.05) < 0.12
    assert 0.3 < np.mean(p_values) < 0.7


def test_intervals_are_the_same_in_one_block_or_many(monkeypatch):
    import deepfake_nb.evaluation.metrics as metrics

    wide = evaluate(table(40, 4), level="unit", resamples=3000).values["auc"]
    monkeypatch.setattr(metrics, "CELLS", 2_000)
    narrow = evaluate(table(40, 4), level="unit", resamples=3000).values["auc"]
    assert (wide.low, wide.high) == pytest.approx((narrow.low, narrow.high), abs=0.01)


def test_order_of_rows_does_not_change_the_value():
    rows = table(40, 4)
    shuffled = rows.sample(frac=1, random_state=0)
    for level in ("media", "unit"):
        a, b = (evaluate(one, level=level, resamples=200).values for one in (rows, shuffled))
        assert {name: number.value for name, number in a.items()} == pytest.approx(
            {name: number.value for name, number in b.items()}
        )


def test_a_mean_over_clusters():
    assert bootstrap_mean([1.0, 2.0], ["a", "a"]) == Measured(
        1.5, n=1, reason="One media file alone has no interval."
    )
    with pytest.raises(InputError, match="finite"):
        bootstrap_mean([1.0, np.nan])
    rng = np.random.default_rng(0)
    inside = [bootstrap_mean(rng.normal(3, 1, 30), rng=rng, resamples=300) for _ in range(150)]
    assert 0.88 < np.mean([mean.low <= 3 <= mean.high for mean in inside]) <= 1
    scaled = bootstrap_mean(np.full(10, 5.0), bounds=(0, 5))
    assert scaled.high == 5 and scaled.low == pytest.approx(5 * 0.025**0.1)


def test_every_metric_on_hand_made_counts():
    labels = np.array([0, 0, 0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.4, 0.8])
    value = {name: metric.plain(labels, scores, 0.5) for name, metric in METRICS.items()}
    by_hand = {
        "auc": 6 / 8, "accuracy": 4 / 6, "precision_fake": 1 / 2, "recall_fake": 1 / 2, "f1_fake": 1 / 2,
        "precision_real": 3 / 4, "recall_real": 3 / 4, "f1_real": 3 / 4, "precision_macro": 5 / 8,
        "recall_macro": 5 / 8, "f1_macro": 5 / 8, "average_precision": (1 / 2 + 2 / 3) / 2,
        "equal_error_rate": 1 / 4, "tpr_at_fpr_1": 0.0, "tpr_at_fpr_10": 0.0,
        "brier": (0.01 + 0.04 + 0.09 + 0.81 + 0.36 + 0.04) / 6,
    }  # fmt: skip
    assert {name: value[name] for name in by_hand} == pytest.approx(by_hand)


# Calibration and decisions


def test_calibration_is_fitted_on_validation_rows_only():
    rows = table(40)
    with pytest.raises(InputError, match="these rows are of test, train, not val"):
        fit_calibration(rows.label, rows.score, split=["val", "test", "train"] + ["val"] * 37)
    with pytest.raises(TypeError):
        fit_calibration(rows.label, rows.score)
    with pytest.raises(Undefined, match="All labels are real"):
        fit_calibration([0, 0], [0.1, 0.2], split="val")
    with pytest.raises(InputError, match="logits=True"):
        fit_calibration([0, 1], [-3, 4], split="val")
    with pytest.raises(UsageError, match="no calibration 'beta'"):
        fit_calibration([0, 1], [0.3, 0.4], "beta", split="val")


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_calibrations_travel_as_json_and_rise(method):
    rows = table(200)
    fitted = fit_calibration(rows.label, rows.score, method, split=["val"] * 200)
    sent = read_calibration(json.loads(json.dumps(fitted.as_dict(), allow_nan=False)))
    scores = np.linspace(0, 1, 50)
    assert np.array_equal(sent.apply(scores), fitted.apply(scores))
    assert (np.diff(sent.apply(scores)) >= 0).all() and 0 <= sent.apply(scores).min() <= sent.apply(
        scores
    ).max() <= 1
    with pytest.raises(InputError):
        sent.apply([0.2, np.nan])


def test_calibration_of_logits():
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, 3000)
    labels = (rng.random(3000) < 1 / (1 + np.exp(-honest))).astype(int)
    fitted = fit_calibration(labels, 4 * honest, "temperature", split="val", logits=True)
    assert fitted.parameters["slope"] == pytest.approx(0.25, abs=0.02)
    assert expected_calibration_error(labels, fitted.apply(4 * honest)) < 0.03


@pytest.mark.parametrize(
    "value",
    [{}, 3, None, {"method": "platt"}, {"method": "platt", "parameters": {"slope": 1}, "logits": False, "n": 1, "n_fake": 1},
     {"method": "platt", "parameters": {"slope": 1, "intercept": None}, "logits": False, "n": 1, "n_fake": 1},
     {"method": "exec", "parameters": {"slope": 1, "intercept": 0}, "logits": False, "n": 1, "n_fake": 1}],
)  # fmt: skip
def test_what_is_no_calibration(value):
    with pytest.raises(InputError, match="no calibration"):
        read_calibration(value)


def test_decision_rule():
    assert decision_threshold(0.5) == pytest.approx(0.5)
    assert decision_threshold(0.5, cost_miss=9) == pytest.approx(0.1)
    assert decision_threshold(4119 / 5250) == pytest.approx(1 - 4119 / 5250)
    for arguments in (
        {"prior_fake": 0},
        {"prior_fake": 0.5, "cost_miss": 0},
        {"prior_fake": 0.5, "training_prior": 1},
    ):
        with pytest.raises(InputError):
            decision_threshold(**arguments)


# Figures


@pytest.mark.parametrize("plot", [plot_roc, plot_det, plot_precision_recall])
def test_curves_are_finite_and_say_what_is_missing(plot):
    axes = plot({"all": table(30), "perfect": table(30).assign(score=lambda rows: rows.label),
                 "fakes": table(30).query("label == 1")}, resamples=50)  # fmt: skip
    axes.figure.canvas.draw()
    assert "fakes: undefined (all labels are fake)" in [
        text.get_text() for text in axes.get_legend().get_texts()
    ]
    x, y = axes.get_xlim(), axes.get_ylim()
    assert np.isfinite([x, y]).all()
    matplotlib.pyplot.close("all")


def test_figures_take_axes_and_make_none():
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3)
    before = plt.get_fignums()
    assert plot_scores(table(30, 3), axes=panels[0]) is panels[0]
    assert plot_confusion(evaluate(table(30)), panels[1]) is panels[1]
    assert plot_reliability(table(30), panels[2]) is panels[2]
    plot_confusion([[3, 0], [0, 0]], panels[1])
    assert plt.get_fignums() == before
    plt.close(figure)


# The program


def test_holm_by_hand_and_missing_values():
    np.testing.assert_allclose(correct_by_holm([0.02, 0.01, 0.5]), [0.04, 0.03, 0.5])
    assert np.isnan(correct_by_holm([None, 0.2])).tolist() == [True, False]


def test_paired_tests_find_a_difference_and_correct_for_many():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    ids = [str(at) for at in range(200)]
    chance, good = (pd.DataFrame({"media_id": ids, "label": labels, "score": scores}) for scores in (
        rng.random(200), 0.4 * rng.random(200) + 0.5 * labels
    ))  # fmt: skip
    tests = paired_tests(
        {("better",): (chance, good), ("same",): (good, good)}, np.random.default_rng(0), 200
    )
    better, same = (
        tests[(tests.row == row) & (tests.metric == "AUC")].iloc[0] for row in (("better",), ("same",))
    )
    assert better.difference > 0.3 and better.p_holm < 0.001 and same.difference == 0 and same.p_holm == 1


# Large tables


def large_table(n=24_000, **columns):
    rng = np.random.default_rng(5)
    label = rng.integers(0, 2, n)
    score = np.round(1 / (1 + np.exp(-1.2 * label - rng.standard_normal(n))), 4)
    return pd.DataFrame(
        {"media_id": [f"{i:06d}" for i in range(n)], "label": label, "score": score, **columns}
    )


@pytest.mark.parametrize(("n", "n_clusters"), [(24_000, None), (12_000, None), (24_000, 300)])
def test_large_tables_get_the_intervals_of_small_ones(monkeypatch, n, n_clusters):
    rows = large_table(n)
    clusters = None if n_clusters is None else np.arange(len(rows)) % n_clusters
    sample = metrics.Sample(rows.label, rows.score, clusters, 0.6)
    fast = metrics.resample_metrics([sample], list(METRICS), 300, np.random.default_rng(0))[0]
    monkeypatch.setattr(metrics, "MANY_ROWS", 10**9)
    monkeypatch.setattr(metrics.groups_of_clusters, "__defaults__", (10**9,))
    slow = metrics.resample_metrics([sample], list(METRICS), 300, np.random.default_rng(1))[0]
    for name in METRICS:
        width = slow[name].std()
        assert fast[name].std() == pytest.approx(width, rel=0.2), name
        assert abs(fast[name].mean() - slow[name].mean()) < 0.4 * width, name


def test_a_large_table_that_is_told_apart_perfectly_has_the_exact_interval():
    rows = large_table().assign(score=lambda t: (1 + t.label + 0.9 * t.score) / 3)
    found = evaluate(rows, threshold=0.66, resamples=20).values
    assert found["auc"].value == found["accuracy"].value == 1
    assert 0.9995 < found["auc"].low < 1 and found["auc"].high == 1


def test_rare_errors_of_a_large_table_keep_their_interval():
    rows = large_table().assign(score=lambda t: t.label.astype(float))
    rows.loc[rows.index[rows.label == 0][:4], "score"] = 0.7
    found = evaluate(rows, resamples=500).values["recall_real"]
    n_real = (rows.label == 0).sum()
    assert found.low == pytest.approx(1 - 8.5 / n_real, abs=2 / n_real) and 1 - found.high < 1.5 / n_real


def test_memory_and_work_of_a_large_table_are_bounded():
    strata = np.repeat([0, 1], [200_000, 30])
    group, strata_of_groups = metrics.groups_of_clusters(strata, np.random.default_rng(0))
    assert np.bincount(strata_of_groups).tolist() == [metrics.GROUPS, 30]
    assert (
        set(np.bincount(group)[: metrics.GROUPS]) == {80}
        and (np.bincount(group)[metrics.GROUPS :] == 1).all()
    )


# Many detectors, many groups


def leaderboard_file(path):
    """Four detectors as columns with gaps: two good ones, one that guesses, one that scored nothing."""
    rng = np.random.default_rng(2)
    n = 240
    label = np.arange(n) % 2
    kind = np.where(np.arange(n) % 4 < 2, "image", "video")
    good = 1 / (1 + np.exp(1 - 2 * label - rng.standard_normal(n)))
    wide = pd.DataFrame({
        "id": [f"f{i}" for i in range(n)],
        "label": np.where(label, "fake", "real"),
        "modality": kind,
        "generator": np.where(label, [f"gan{i % 40}" for i in range(n)], np.where(kind == "image", "coco", "msrvtt")),
        "prob_a": np.where(np.arange(n) < 180, good ** rng.uniform(0.95, 1.05, n), np.nan),
        "prob_b": good ** rng.uniform(0.95, 1.05, n),
        "prob_guess": np.where(kind == "image", rng.uniform(size=n), np.nan),
        "prob_none": np.nan,
        "lat_a": 1.0,
    })  # fmt: skip
    wide.to_csv(path, index=False)
    return wide


def test_a_matrix_of_detectors_with_gaps_is_ranked(tmp_path, capsys):
    wide = leaderboard_file(tmp_path / "p.csv.gz")
    command = ("evaluate", tmp_path / "p.csv.gz", "--label", "label", "--id", "id", "--score", "prob_*")
    assert status_of(*command, "--by", "modality", "--json", tmp_path / "e.json") == 0
    board = json.loads((tmp_path / "e.json").read_text(), parse_constant=pytest.fail)["leaderboards"]
    assert list(board) == ["all", "image", "video"]
    rows = {row["detector"]: row for row in board["all"]["detectors"]}
    assert {name: row["coverage"] for name, row in rows.items()} == {
        "prob_a": 0.75,
        "prob_b": 1,
        "prob_guess": 0.5,
    }
    assert {name: row["rank"] for name, row in rows.items()} == {"prob_a": 1, "prob_b": 1, "prob_guess": 3}
    scored = wide[wide.prob_a.notna()]
    assert rows["prob_a"]["auc"]["value"] == pytest.approx(auc(scored.label == "fake", scored.prob_a))
    pair = board["all"]["pairwise"][0]
    expected = delong_test(scored.label == "fake", scored.prob_a, scored.prob_b)
    assert (pair["a"], pair["b"], pair["n"]) == ("prob_a", "prob_b", 180)
    assert (pair["difference"], pair["p_value"]) == pytest.approx((expected.difference, expected.p_value))
    assert [row["p_holm"] for row in board["all"]["pairwise"]] == pytest.approx(
        correct_by_holm([row["p_value"] for row in board["all"]["pairwise"]])
    )
    assert {row["detector"] for row in board["video"]["detectors"]} == {"prob_a", "prob_b"}
    said = capsys.readouterr()
    assert (
        "prob_none has no score at all" in said.err
        and "share a rank" in said.out
        and "nan" not in said.out.lower()
    )


def test_two_named_columns_are_two_detectors(tmp_path):
    leaderboard_file(tmp_path / "p.csv")
    command = (
        "evaluate",
        tmp_path / "p.csv",
        "--score",
        "prob_b",
        "--score",
        "prob_a",
        "--json",
        tmp_path / "e.json",
    )
    assert status_of(*command) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert [group["of"]["detector"] for group in found["groups"]] == ["prob_a", "prob_b"]
    assert status_of("evaluate", tmp_path / "p.csv", "--score", "q_*") == 2


def test_groups_of_fakes_meet_all_genuine_media_or_those_of_their_kind(tmp_path, capsys):
    wide = leaderboard_file(tmp_path / "p.csv")
    command = (
        "evaluate",
        tmp_path / "p.csv",
        "--score",
        "prob_b",
        "--by",
        "generator",
        "--json",
        tmp_path / "e.json",
    )
    for more, n_real in (((), 120), (("--within", "modality", "--figure", tmp_path / "g.png"), 60)):
        assert status_of(*command, *more) == 0
        groups = json.loads((tmp_path / "e.json").read_text())["groups"]
        assert len(groups) == 20 and {group["n"] - group["n_fake"] for group in groups} == {n_real}
        areas = [group["auc"]["value"] for group in groups]
        assert areas == sorted(areas)
        worst = wide[(wide.generator == groups[0]["group"]) | (wide.label == "real")]
        beside = worst[worst.modality == worst[worst.label == "fake"].modality.iloc[0]] if more else worst
        assert areas[0] == pytest.approx(auc(beside.label == "fake", beside.prob_b))
        assert "undefined" not in capsys.readouterr().out
    assert (tmp_path / "g.png").stat().st_size > 10_000


def test_hundreds_of_groups_are_quick_and_cut_on_the_terminal(capsys, monkeypatch, tmp_path):
    rows = table(400).assign(
        method=lambda t: np.where(t.label == 1, [f"m{i % 100}" for i in range(400)], "camera")
    )
    rows.to_csv(tmp_path / "p.csv", index=False)
    drawn = []
    monkeypatch.setattr(
        metrics, "resample_metrics", lambda *a, kept=metrics.resample_metrics: drawn.append(1) or kept(*a)
    )
    assert status_of("evaluate", tmp_path / "p.csv", "--by", "method") == 0
    assert len(drawn) == 1 and "75 more groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    "says",
    [{"trained_on": "m0, m1"}, {"seen": lambda t: t.method.isin(["m0", "m1"])}, {"training": lambda t: np.where(t.method.isin(["m0", "m1"]), "seen", "unseen")}],
)  # fmt: skip
def test_what_was_trained_on_is_reported_apart(tmp_path, says):
    rows = table(80).assign(
        method=lambda t: np.where(t.label == 1, [f"m{i % 4}" for i in range(80)], "camera")
    )
    rows.assign(**says).to_csv(tmp_path / "p.csv", index=False)
    column = "training" if "training" in says else "method"
    assert status_of("evaluate", tmp_path / "p.csv", "--held-out", column, "--json", tmp_path / "e.json") == 0
    groups = json.loads((tmp_path / "e.json").read_text())["groups"]
    assert {group["group"]: (group["n"], group["n_fake"]) for group in groups} == {
        "trained on": (60, 20),
        "held out": (60, 20),
    }


def test_held_out_without_a_column_that_says_so(tmp_path, capsys):
    table(20, method="m").to_csv(tmp_path / "p.csv", index=False)
    assert status_of("evaluate", tmp_path / "p.csv", "--held-out", "method") == 2
    assert "Add one of trained_on" in capsys.readouterr().err
