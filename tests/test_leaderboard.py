"""Leaderboard: reports that are missing or damaged, ranks and their ties, intervals by person, costs, and the table others show."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepfake_nb.evaluation.ranking import ranks_with_ties
from deepfake_nb.sections import leaderboard
from deepfake_nb.sections.leaderboard import (
    NOT_TUNED,
    detector_costs,
    find_headline,
    gather_robustness,
    generalisation_gaps,
    headline_table,
    is_home,
    measure_detectors,
    paired_differences,
    read_costs,
    read_reports,
    with_ranks,
)
from deepfake_nb.study.files import InputError
from deepfake_nb.study.records import Result, load_results
from deepfake_nb.study.runner import execute_notebook, section_notebook

REFERENCE = Path(__file__).resolve().parents[1] / "reports" / "reference"


def predictions_of(detector, scores, labels, train_set="fakes", eval_set="fakes", **more):
    media = [f"{eval_set} {number}" for number in range(len(labels))]
    about = {"unit": 0, "detector": detector, "train_set": train_set, "eval_set": eval_set, **more}
    return pd.DataFrame({"media_id": media, "label": labels, "score": scores, **about})


def noisy(n=80, gap=0.3, seed=0):
    """Labels, and scores in [0, 1] whose classes lie `gap` apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, np.clip(rng.normal(0.5, 0.2, n) + gap * (labels - 0.5), 0, 1)


def write_section(folder, section, tables, results=(), robustness=None, **run):
    """A section's reports as the sections leave them."""
    folder = folder / section
    folder.mkdir(parents=True)
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet")
    if robustness is not None:
        robustness.to_parquet(folder / "robustness.parquet")
    record = {"profile": "smoke", "seed": 0, "protocol": "stated", "device": "a machine", **run}
    (folder / "run.json").write_text(json.dumps(record))
    rows = [vars(Result(section, **row)) for row in results]
    (folder / "results.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def reports(tmp_path):
    """Two sections, and three that were not run."""
    labels, good = noisy(gap=0.6)
    _, poor = noisy(gap=0.0, seed=1)
    simple = (
        predictions_of("simplenet", good, labels),
        predictions_of("simplenet", poor, labels, eval_set="other"),
    )
    write_section(tmp_path, "frame_detectors", simple)
    write_section(tmp_path, "latent", [predictions_of("SG <b>LR</b>|x", poor, labels, train_set="N/A")],
                  [{"table": "Price", "row": "SG <b>LR</b>|x", "metric": "milliseconds a face", "value": 12.5}])  # fmt: skip
    return tmp_path


def board_of(reports, resamples=100):
    return with_ranks(
        measure_detectors(reports.predictions, resamples), paired_differences(reports.predictions, resamples)
    )


# Reading


def test_missing_sections_are_said_and_none_at_all_is_an_error(reports, tmp_path_factory):
    found = read_reports(reports)
    assert found.status.state.to_dict() == {
        "datasets": "not run", "frame_detectors": "run", "fusion": "not run", "altfreezing": "not run", "latent": "run",
    }  # fmt: skip
    assert not len(found.robustness)
    with pytest.raises(InputError, match="deepfake-nb study"):
        read_reports(tmp_path_factory.mktemp("nothing"))


def test_two_sections_with_one_name_for_a_test_set_stay_apart(reports):
    found = read_reports(reports).predictions
    assert set(found.test_set) == {"fakes (frame_detectors)", "other", "fakes (latent)"}
    assert set(found.train_set) == {"fakes", NOT_TUNED}
    assert is_home("fakes", "fakes (frame_detectors)") and not is_home(NOT_TUNED, "fakes (latent)")


def test_a_damaged_file_is_said_and_the_others_count(reports):
    (reports / "latent" / "predictions.parquet").write_bytes(b"PAR1 and then nothing")
    (reports / "frame_detectors" / "robustness.parquet").write_bytes(b"")
    found = read_reports(reports)
    assert "predictions.parquet cannot be read" in found.status.state["latent"]
    assert "robustness.parquet cannot be read" in found.status.state["frame_detectors"]
    assert set(found.predictions.section) == {"frame_detectors"}
    (reports / "frame_detectors" / "run.json").unlink()
    with pytest.raises(InputError, match="No section left predictions"):
        read_reports(reports)


def test_an_older_leaderboard_is_not_read_back(reports):
    row = {"table": "Price", "row": "SG <b>LR</b>|x", "metric": "milliseconds a face", "value": 99.0}
    (reports / "leaderboard").mkdir()
    (reports / "leaderboard" / "results.json").write_text(json.dumps([vars(Result("leaderboard", **row))]))
    assert set(read_reports(reports).results.section) == {"latent"}


# Measuring


def test_frames_count_as_one_file_and_people_are_drawn_whole(tmp_path):
    labels, scores = noisy(40, 0.3)
    frames = pd.concat([predictions_of("d", scores, labels).assign(unit=unit) for unit in range(3)])
    twins = frames.assign(media_id=frames.media_id + " again")
    both = pd.concat([frames, twins]).assign(person=lambda t: t.media_id.str.removesuffix(" again"))
    write_section(
        tmp_path,
        "fusion",
        [both.drop(columns="person").assign(detector="by file"), both.assign(detector="by person")],
    )
    write_section(tmp_path, "altfreezing", [both])
    rows = measure_detectors(read_reports(tmp_path).predictions, 400).set_index("detector")
    assert (rows.n == 80).all()
    assert rows.drawn_by.to_dict() == {"by file": "media_id", "by person": "person", "d": "person"}
    width = rows.auc_high - rows.auc_low
    assert width["d"] > 1.2 * width["by file"]  # the second file of a person tells nothing new


def test_a_row_does_not_depend_on_who_else_is_there(reports):
    found = read_reports(reports).predictions
    alone = measure_detectors(found[found.section == "latent"], 50)
    among = measure_detectors(found, 50).query("section == 'latent'")
    numbers = ["auc", "auc_low", "auc_high", "equal_error_rate_low", "accuracy"]
    assert alone[numbers].to_numpy().tolist() == among[numbers].to_numpy().tolist()


def entered(tables):
    """Predictions as `read_reports` gives them."""
    return pd.concat(tables, ignore_index=True).assign(section="made", test_set=lambda table: table.eval_set)


def test_only_common_media_are_compared_and_a_test_that_cannot_be_is_a_tie():
    labels, scores = noisy(60)
    whole, half = predictions_of("whole", scores, labels), predictions_of("half", scores**2, labels)[:20]
    apart = predictions_of("apart", 1 - scores, labels).assign(
        media_id=lambda table: "other " + table.media_id
    )
    table = entered([whole, half, apart])
    found = paired_differences(table).set_index(["a", "b"])
    assert sorted(found.n) == [0, 0, 20]
    assert found.p_value.isna().sum() == 2
    ranks = with_ranks(measure_detectors(table, 50), found.reset_index()).set_index("detector")["rank"]
    assert ranks["apart"] == ranks["whole"] == 1


def test_one_person_behind_all_fakes_is_no_test_but_no_error():
    labels, scores = noisy(12)
    person = np.where(labels == 1, "one", [f"person {number}" for number in range(12)])
    two = (predictions_of(name, scores**power, labels, person=person) for name, power in (("a", 1), ("b", 2)))
    table = entered(two)
    found = paired_differences(table, 50)
    assert found.p_value.isna().all() and found.n[0] == 12
    board = with_ranks(measure_detectors(table, 50), found)
    assert board.auc_low.isna().all() and not board.above_chance.any() and (board["rank"] == 1).all()


def test_perfect_and_hopeless_differ_although_delong_cannot_tell():
    labels = np.arange(40) % 2
    table = entered(
        [predictions_of("perfect", labels * 1.0, labels), predictions_of("hopeless", 1.0 - labels, labels)]
    )
    found = paired_differences(table, 500)
    assert abs(found.difference[0]) == 1 and found.p_value[0] < 0.01
    assert with_ranks(measure_detectors(table, 50), found)["rank"].tolist() == [1, 2]


def test_ranks_part_what_differs_and_keep_what_does_not():
    labels, good = noisy(300, 0.5)
    rng = np.random.default_rng(5)
    near, poor = np.clip(good + rng.normal(0, 0.02, 300), 0, 1), rng.random(300)
    table = entered(
        [predictions_of(*part, labels) for part in (("poor", poor), ("good", good), ("near", near))]
    )
    differences = paired_differences(table)
    board = with_ranks(measure_detectors(table, 100), differences).set_index("detector")
    assert board["rank"].to_dict() == {"good": 1, "near": 1, "poor": 3}
    assert board.above_chance.to_dict() == {"good": True, "near": True, "poor": False}
    assert (differences.p_holm >= differences.p_value).all()


def test_ranks_compare_with_the_leader_of_the_group():
    p_values = np.ones((3, 3))
    p_values[1, 2] = p_values[2, 1] = 0.001  # the last is worse than the second, not than the first
    assert ranks_with_ties([0.9, 0.8, 0.7], p_values).tolist() == [1, 1, 1]
    p_values[0, 2] = p_values[2, 0] = 0.001
    assert ranks_with_ties([0.7, 0.8, 0.9], p_values).tolist() == [2, 2, 1]


def test_a_gap_is_home_less_away_and_needs_both(reports):
    gaps = generalisation_gaps(measure_detectors(read_reports(reports).predictions, 200))
    assert gaps.detector.tolist() == ["simplenet"]
    assert gaps.lost[0] == pytest.approx(gaps.home[0] - gaps.away[0]) and gaps.low[0] > 0


def test_a_test_set_of_one_label_is_a_sentence():
    table = entered([predictions_of("d", [0.1, 0.2, 0.3], [1, 1, 1])])
    with pytest.raises(InputError, match="'fakes' of 'made' has files of one label only"):
        measure_detectors(table, 10)


# Costs


def test_recorded_times_are_taken_and_others_are_timed(reports):
    costs = detector_costs(read_reports(reports), turns=1).set_index("detector")
    assert (
        costs.milliseconds["SG <b>LR</b>|x"] == 12.5
        and costs.measured["SG <b>LR</b>|x"] == "in the section, a machine"
    )
    assert costs.parameters["simplenet"] == 16_901_762 and costs.milliseconds["simplenet"] > 0
    assert costs.measured["simplenet"].startswith("here")


def test_a_network_of_another_size_is_not_timed(tmp_path):
    labels, scores = noisy(20)
    for folder, count in (("same", 1_720_785), ("other", 27_225_921)):
        counted = {"table": "Base model", "row": "video ResNet", "metric": "parameters", "value": count}
        write_section(
            tmp_path / folder,
            "altfreezing",
            [predictions_of("base model", scores, labels)],
            [counted],
            profile="demo",
        )
        costs = detector_costs(read_reports(tmp_path / folder), turns=1)
        assert costs.parameters[0] == count and costs.milliseconds.notna()[0] == (folder == "same")


def test_fusions_find_their_row_in_the_table_of_costs():
    rows = [("DenseNet + Xception + ResNet", 27.0), ("Mesonet", 0.3), ("Xception + DenseNet", 17.5)]
    results = pd.DataFrame([
        vars(Result("fusion", "Cost against accuracy", row, "milliseconds a picture", value)) for row, value in rows
    ])  # fmt: skip
    for detector, value in (("densenet121 + xception + resnet50, frozen", 27.0), ("meso4, from_scratch", 0.3),
                            ("densenet121 + xception, frozen", 17.5)):  # fmt: skip
        assert read_costs(results, "fusion", detector) == {"milliseconds": value, "of": "face"}
    assert read_costs(results, "fusion", "resnet50, frozen") == {}


def test_shapes_are_those_of_the_sections():
    network, shape, of = leaderboard.network_like("altfreezing", "base model", "demo")
    assert of == "clip" and shape == (3, 16, 96, 96) and network.settings["width"] == 16
    assert leaderboard.section_sizes("frame_detectors", "gpu")["xception_pixels"] == 256
    assert leaderboard.network_like("latent", "SG LR", "demo") is None


# Worn images


def worn(table, axis="noise", levels=(0, 1, 2), noise=0.0):
    rng = np.random.default_rng(0)
    return pd.concat([
        table.assign(axis=axis, level=level, strength=np.nan if not level else 10.0 * level,
                     score=np.clip(table.score + rng.normal(0, noise * level + 1e-9, len(table)), 0, 1))
        for level in levels
    ], ignore_index=True)  # fmt: skip


def test_degraded_images_of_sections_with_other_columns(tmp_path):
    labels, scores = noisy(60, 0.8)
    one, other = (
        predictions_of("one", scores, labels),
        predictions_of("two", scores, labels, eval_set="x", split="test"),
    )
    write_section(tmp_path, "frame_detectors", [one], robustness=worn(one, noise=0.5))
    write_section(tmp_path, "altfreezing", [other], robustness=worn(other))
    curves, areas = gather_robustness(read_reports(tmp_path), 60)
    assert set(curves.section) == set(areas.section) == {"frame_detectors", "altfreezing"}
    of = areas[areas.axis == "noise"].set_index("detector")
    assert of.area["two"] == pytest.approx(of.untouched["two"])
    assert of.area["one"] < of.untouched["one"] - 0.02


# The whole section, and what others show of it


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The section run on two made sections, one of which has names that look like HTML and Markdown."""
    root = tmp_path_factory.mktemp("study") / "smoke"
    labels, good = noisy(60, 0.6)
    _, poor = noisy(60, 0.1, seed=2)
    table = predictions_of("SG <b>LR</b>|x", poor, labels, train_set="*dfdc*\ntrain", eval_set="<i>set</i>")
    write_section(root, "latent", [table, table.assign(detector="a$b_{", score=good)], robustness=worn(table))
    write_section(root, "frame_detectors", [predictions_of("simplenet", good, labels)], profile="demo", seed=7,
                  results=[{"table": "Detectors", "row": "simplenet", "metric": "AUC", "value": 0.9, "data": "made faces"}])  # fmt: skip
    folder = root / "leaderboard"
    execute_notebook(
        section_notebook("leaderboard"), folder.parent / "run.ipynb", {"report_folder": str(folder)}, root
    )
    return root


def test_the_section_runs_on_what_there_is_and_writes_what_it_found(executed):
    results = load_results(executed).query("section == 'leaderboard'")
    board = results[results.table == "Leaderboard"]
    assert set(board.metric) == {"AUC", "average precision", "EER", "accuracy", "majority rate", "rank"}
    assert len(board) == 3 * 6
    simple = board[board.row == "simplenet, fakes -> fakes"]
    assert set(simple.data) == {"made faces"} and set(simple.profile) == {"demo"} and set(simple.seed) == {7}
    assert len(results[results.table == "Robustness"]) == 1
    figures = {path.name for path in (executed / "leaderboard" / "figures").iterdir()}
    assert {"ranks.png", "generalisation.png", "costs.png", "verdicts.png", "robustness-areas.png"} <= figures
    said = (executed / "run.ipynb").read_text()
    assert "**fusion** is missing" in said and "not run alike" in said


def test_the_headline_is_a_table_whose_names_are_text(executed):
    lines = headline_table(executed).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows) and len(rows) == 2 + 2
    text = "\n".join(lines)
    assert "<" not in text and "&lt;i&gt;set&lt;/i&gt;" in text and "*" not in text
    best = find_headline(board_of(read_reports(executed), 200)).set_index(["test_set", "side"]).auc
    assert f"{best['fakes', 'trained on it']:.2f} [" in text and "none" in text
    assert "made faces, unknown data" in text and "demo, smoke" in text


def test_no_leaderboard_is_a_sentence(reports):
    with pytest.raises(InputError, match="no leaderboard"):
        headline_table(reports)


def test_the_committed_leaderboard_is_that_of_the_committed_predictions():
    results = load_results(REFERENCE).query(
        "section == 'leaderboard' and table == 'Leaderboard' and metric == 'AUC'"
    )
    board = measure_detectors(read_reports(REFERENCE).predictions, 2)
    ours = {f"{row.detector}, {row.train_set} -> {row.test_set}": row.auc for row in board.itertuples()}
    assert results.set_index("row").value.to_dict() == pytest.approx(ours, abs=1e-5)
