"""What the training notebook cannot show: killed processes, several processes, damaged files, every refusal."""

import json
import os
import pickle
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from deepfake_nb.learning.training import (
    Trainer,
    TrainingLog,
    TrainingSettings,
    binary_cross_entropy,
    cross_entropy,
    fake_scores,
    plot_curves,
)
from deepfake_nb.media.images import (
    HALF_NORMALISATION,
    ArraySet,
    Augmentation,
    ImageSet,
)
from deepfake_nb.networks.devices import has_bf16, seeded
from deepfake_nb.study.files import InputError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainingSettings(epochs=4, batch_size=8, learning_rate=0.01)
AUGMENTATION = Augmentation(HALF_NORMALISATION, padding=2, flip=True)


def pictures(n, seed=0, size=12):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    stills = rng.integers(60, 180, (n, size, size, 3)).astype(np.uint8)
    stills[labels == 1, ::2] += 40
    return ArraySet(stills, labels)


def network(outputs=2, dropout=0.2, norm=True):
    with seeded(0, "weights"):
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, outputs)]
        return nn.Sequential(*layers, nn.Flatten(0) if outputs == 1 else nn.Identity())


def trainer(settings=SETTINGS, model=None, **options):
    return Trainer(model or network(), settings, **{"transform": AUGMENTATION, **options})


def numbers(log):
    return [{k: v for k, v in record.items() if k not in ("seconds", "wait_s")} for record in log.records]


TRAIN, VALIDATION = pictures(33, 1), pictures(16, 2)


# --- a process that dies ------------------------------------------------------------------------------------------

RUN = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
import test_training as t

t.torch.set_num_threads(1)
t.killed_run({folder!r}, {step}, {in_file})
"""
LONG = replace(SETTINGS, schedule="plateau", patience=0, early_stopping=3)


class Killer:
    """Kills its own process at a step."""

    def __init__(self, step):
        self.step = step

    def on_step_start(self, trainer, step):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_run(folder, step, in_file):
    """A run that kills its own process at a step, or when half of a checkpoint is written; prints what is left."""
    whole = torch.save

    def half(content, file):
        whole(content, file)
        if in_file and len(json.loads(content.get("log", '{"records": []}'))["records"]) == in_file:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    log = trainer(LONG, folder=folder, hooks=[Killer(step)]).fit(TRAIN, VALIDATION)
    print(json.dumps(numbers(log)))


def run_script(folder, step=-1, in_file=0):
    script = RUN.format(tests=str(Path(__file__).parent), folder=str(folder), step=step, in_file=in_file)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_numbers(tmp_path):
    for kill in ({"step": 10}, {"in_file": 3}):
        assert run_script(tmp_path / "killed", **kill).returncode == -signal.SIGKILL
    assert list((tmp_path / "killed").glob(".*.part.*"))
    resumed = run_script(tmp_path / "killed")
    whole = trainer(LONG, folder=tmp_path / "whole", hooks=[Killer(-1)]).fit(TRAIN, VALIDATION)
    assert len(whole.records) >= 3
    assert json.loads(resumed.stdout) == numbers(whole), resumed.stderr
    weights = [torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("killed", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not list((tmp_path / "killed").glob(".*.part.*"))


def test_hook_with_a_state_gets_it_back(tmp_path):
    class Counter:
        count = 0

        def on_epoch_end(self, trainer, epoch, record):
            self.count += 1
            record["count"] = np.float32(self.count).item()

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    trainer(replace(SETTINGS, epochs=2), folder=tmp_path, hooks=[Counter()]).fit(TRAIN, VALIDATION)
    again = trainer(replace(SETTINGS, epochs=3), folder=tmp_path, hooks=[Counter()])
    assert [record["count"] for record in again.fit(TRAIN, VALIDATION).records] == [1, 2, 3]


# --- checkpoints that are not what they should be -------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    trainer(replace(SETTINGS, epochs=3), folder=tmp_path).fit(TRAIN, VALIDATION)
    return tmp_path


def fit_in(folder, settings=SETTINGS, train=TRAIN, resume=True, **options):
    return trainer(settings, folder=folder, **options).fit(train, VALIDATION, resume=resume)


@pytest.mark.parametrize("rest", [0, 100, 0.5, 0.99])
def test_cut_checkpoint_falls_back_to_the_one_before(run_folder, rest):
    whole = trainer().fit(TRAIN, VALIDATION)
    path = run_folder / "epoch_003.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(rest * len(content)) if rest < 1 else rest])
    with pytest.warns(UserWarning, match=r"epoch_003.pt' is cut off or damaged. Going on from epoch_002.pt"):
        log = fit_in(run_folder)
    assert numbers(log) == numbers(whole)


def test_only_checkpoint_cut(run_folder):
    for path in run_folder.glob("epoch_*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="There is no other; delete it to start again"):
        fit_in(run_folder)
    assert len(fit_in(run_folder, resume=False).records) == SETTINGS.epochs


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_checkpoint_that_runs_code_is_refused(run_folder, monkeypatch, way):
    monkeypatch.setenv("EVIL_FOLDER", str(run_folder / "evil"))
    path = run_folder / "epoch_004.pt"
    if way == "torch":
        torch.save({"format": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="could run code when opened, so it was not opened"):
        fit_in(run_folder)
    assert not (run_folder / "evil").exists()


def test_file_that_is_no_checkpoint(run_folder):
    torch.save({"weights": torch.zeros(3)}, run_folder / "epoch_009.pt")
    with pytest.raises(InputError, match="no checkpoint of this trainer"):
        fit_in(run_folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(model=network(1)), r"another network: its '6.weight' is \(2, 16\), here it is \(1, 16\)"),
        (dict(model=nn.Sequential(nn.Flatten(), nn.Linear(432, 2))), "another network"),
        (dict(settings=replace(SETTINGS, learning_rate=0.02)), "learning_rate = 0.01, but this run has learning_rate = 0.02"),
        (dict(settings=replace(SETTINGS, seed=1)), "seed = 0"),
        (dict(settings=replace(SETTINGS, epochs=2)), "more epochs than this run's 2"),
        (dict(transform=HALF_NORMALISATION), "transform"),
        (dict(loss=lambda logits, labels: 2 * cross_entropy(logits, labels)), "loss"),
        (dict(train=pictures(40)), "train set = 33 images"),
        (dict(hooks=[object()]), "hooks"),
    ],
)  # fmt: skip
def test_checkpoint_of_another_run(run_folder, change, said):
    with pytest.raises(InputError, match=said):
        fit_in(run_folder, **change)


def test_checkpoint_of_other_parameter_groups(run_folder):
    model = network()
    groups = [
        {"params": model[0].parameters(), "lr": 1e-4},
        {"params": [*model[1].parameters(), *model[6].parameters()]},
    ]
    with pytest.raises(InputError, match="groups"):
        fit_in(run_folder, model=model, parameters=groups)


def test_finished_run_is_only_read(run_folder):
    before = (run_folder / "epoch_003.pt").stat().st_mtime_ns
    again = trainer(replace(SETTINGS, epochs=3), folder=run_folder)
    assert len(again.fit(TRAIN, VALIDATION).records) == len(again.fit(TRAIN, VALIDATION).records) == 3
    assert (run_folder / "epoch_003.pt").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="trained already"):
        again.fit(TRAIN, VALIDATION, resume=False)


def test_two_runs_in_one_folder(tmp_path):
    from deepfake_nb.study.files import locked_folder

    with locked_folder(tmp_path), pytest.raises(InputError, match="Another run is writing"):
        fit_in(tmp_path)


# --- what a run does ------------------------------------------------------------------------------------------------


def test_same_seed_same_numbers_other_seed_other_numbers():
    first, again, other = (trainer(replace(SETTINGS, seed=seed)).fit(TRAIN, VALIDATION) for seed in (0, 0, 1))
    assert numbers(first) == numbers(again) != numbers(other)


def test_global_randomness_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer(replace(SETTINGS, epochs=1)).fit(TRAIN, VALIDATION)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("n", [33, 32, 9, 1])
def test_last_batch_of_one_picture(n):
    model = network(norm=False)
    model[5] = nn.BatchNorm1d(16) if n > 1 else nn.Identity()  # refuses a single value a channel
    result = trainer(model=model).train_one_epoch(pictures(n), 1)
    assert result.n == n


def test_accumulated_gradients_are_those_of_the_large_batch():
    def weights(**settings):
        run = trainer(
            replace(SETTINGS, optimizer="sgd", epochs=2, **settings), network(dropout=0, norm=False)
        )
        run.fit(TRAIN, VALIDATION)
        return torch.cat([parameter.flatten() for parameter in run.network.parameters()])

    large = weights(batch_size=16)
    torch.testing.assert_close(weights(batch_size=4, accumulate=4), large, rtol=0, atol=1e-6)
    assert (weights(batch_size=4) - large).abs().max() > 1e-4


def test_loss_and_accuracy_are_means_over_pictures():
    run = trainer(model=network(dropout=0))
    result, logits = run.evaluate(TRAIN), run.predict(TRAIN)
    losses = cross_entropy(logits, TRAIN.labels)
    assert result.loss == pytest.approx(losses.double().mean().item(), abs=1e-6)
    assert result.accuracy == np.mean((fake_scores(logits) > 0.5) == TRAIN.labels.numpy())
    batch_means = torch.stack([part.mean() for part in losses.split(8)]).mean().item()
    assert abs(batch_means - losses.mean().item()) > 1e-5


def test_one_logit_is_trained_like_two():
    for outputs in (1, 2):
        log = trainer(replace(SETTINGS, epochs=6, learning_rate=0.05), network(outputs)).fit(
            TRAIN, VALIDATION
        )
        assert log.records[-1]["val_accuracy"] > 0.9
        assert trainer(model=network(outputs)).predict(TRAIN).shape == ((33, 2) if outputs == 2 else (33,))


def test_best_weights_are_those_of_the_best_validation_epoch(tmp_path):
    run = trainer(replace(SETTINGS, epochs=5, learning_rate=0.2, monitor="val_loss"), folder=tmp_path)
    log = run.fit(TRAIN, VALIDATION, {"test": pictures(8, 3)})
    losses = [record["val_loss"] for record in log.records]
    assert log.best_epoch == int(np.argmin(losses)) + 1
    run.load_best()
    assert run.evaluate(VALIDATION).loss == min(losses)
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in run.network.state_dict().items())
    written = json.loads((tmp_path / "log.json").read_text())
    assert (
        written["val_loss"] == losses
        and len(written["test_acc"]) == 5
        and written["best_epoch"] == log.best_epoch
    )


def test_others_decide_nothing():
    alone = trainer().fit(TRAIN, VALIDATION)
    watched = trainer().fit(TRAIN, VALIDATION, {"test": pictures(8, 3)})
    assert alone.best_epoch == watched.best_epoch
    assert [r["val_loss"] for r in alone.records] == [r["val_loss"] for r in watched.records]


class Scripted:
    """Replaces the validation loss of each epoch."""

    def __init__(self, losses):
        self.losses = losses

    def on_epoch_end(self, trainer, epoch, record):
        record["val_loss"] = self.losses[epoch - 1]


def test_early_stopping_counts_epochs_without_a_better_one():
    log = trainer(
        replace(SETTINGS, epochs=9, early_stopping=2), hooks=[Scripted([3, 2, 4, 1, 5, 1, 7, 8, 9])]
    ).fit(TRAIN, VALIDATION)
    assert (log.best_epoch, len(log.records), log.stopped) == (4, 6, "no better val_loss for 2 epochs")


@pytest.mark.parametrize(
    ("schedule", "rates"), [("plateau", [1, 1, 1, 0.1, 0.1]), ("step", [1, 1, 0.1, 0.1, 0.01])]
)
def test_schedules(schedule, rates):
    settings = replace(SETTINGS, epochs=5, schedule=schedule, patience=1, step_epochs=2)
    log = trainer(settings, hooks=[Scripted([3, 4, 5, 2, 1])]).fit(TRAIN, VALIDATION)
    assert [record["learning_rate"] / 0.01 for record in log.records] == pytest.approx(rates)


@pytest.mark.parametrize("schedule", ["plateau", "step"])
def test_schedule_and_patience_go_on_where_they_were(tmp_path, schedule):
    settings = replace(SETTINGS, epochs=6, schedule=schedule, patience=1, step_epochs=3, early_stopping=4)
    whole, short = (
        trainer(replace(settings, epochs=epochs), hooks=[Scripted([1, 2, 3, 4, 5, 6])], folder=folder).fit(
            TRAIN, VALIDATION
        )
        for epochs, folder in ((6, None), (2, tmp_path))
    )
    again = trainer(settings, hooks=[Scripted([1, 2, 3, 4, 5, 6])], folder=tmp_path).fit(TRAIN, VALIDATION)
    assert len(short.records) == 2 and len(whole.records) == 5
    assert whole.records[-1]["learning_rate"] < whole.records[0]["learning_rate"]
    assert (numbers(again), again.stopped) == (numbers(whole), whole.stopped)


def test_checkpoints_every_so_many_epochs(tmp_path):
    fit_in(tmp_path, replace(SETTINGS, epochs=5, checkpoint_every=2, keep=9))
    assert sorted(path.name for path in tmp_path.glob("epoch*")) == [
        "epoch_002.pt",
        "epoch_004.pt",
        "epoch_005.pt",
    ]


def test_bf16_trains():
    log = trainer(replace(SETTINGS, precision="bf16", epochs=6, learning_rate=0.05)).fit(TRAIN, VALIDATION)
    assert log.records[-1]["val_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("able", "quick"),
    [
        ({"cpu_name": "AMD EPYC 9R45", "avx512_bf16": True}, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "AMD EPYC 7763"}, False),
        ({}, False),
    ],
)
def test_bf16_is_used_where_the_processor_is_quick_at_it(monkeypatch, able, quick):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert has_bf16(torch.device("cpu")) is quick


def test_what_was_trained_in_bf16_predicts_in_float32():
    run = trainer(replace(SETTINGS, precision="bf16", epochs=1))
    run.fit(TRAIN, VALIDATION)
    with torch.no_grad():
        whole = run.network.eval()(HALF_NORMALISATION(VALIDATION.read(np.arange(len(VALIDATION)))))
    assert torch.allclose(run.predict(VALIDATION), whole, rtol=0, atol=1e-6)


def test_a_finished_trainer_predicts_as_its_best_epoch_and_holds_weights_only():
    run = trainer(replace(SETTINGS, epochs=3))
    run.fit(TRAIN, VALIDATION)
    run.load_best()
    before = run.predict(VALIDATION)
    assert run.finish() is run.network
    assert torch.equal(run.predict(VALIDATION), before)
    assert not run.optimizer.state and run.best_model is None
    assert all(parameter.grad is None for parameter in run.network.parameters())
    with pytest.raises(UsageError, match="Call fit first"):
        trainer().finish()


def test_clipped_gradients_move_weights_less():
    def moved(limit):
        run = trainer(replace(SETTINGS, optimizer="sgd", clip_gradients=limit))
        before = run.network[0].weight.detach().clone()
        run.train_one_epoch(TRAIN, 1)
        return (run.network[0].weight - before).norm().item()

    assert moved(1e-4) < 0.1 * moved(None)


def test_clips_pass_through():
    rng = np.random.default_rng(0)
    clips = ArraySet(rng.integers(0, 256, (6, 4, 8, 8, 3), dtype=np.uint8), [0, 1] * 3)
    model = nn.Sequential(
        nn.Conv3d(3, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 1), nn.Flatten(0)
    )
    every_change = Augmentation(HALF_NORMALISATION, 1, True, 15, 0.2, 0.2, 0.1)
    run = Trainer(model, replace(SETTINGS, batch_size=4, epochs=1), transform=every_change)
    assert run.fit(clips, clips).records[0]["epoch"] == 1


def test_augmentation_does_not_depend_on_batches():
    class Noting(Augmentation):
        seen: list

        def __call__(self, pictures, draws=None):
            if draws is not None:
                seen.extend(map(tuple, draws.tolist()))
            return super().__call__(pictures, draws)

    tables = []
    for batch_size in (4, 16):
        seen = []
        run = trainer(
            replace(SETTINGS, batch_size=batch_size), transform=Noting(HALF_NORMALISATION, padding=2)
        )
        run.train_one_epoch(TRAIN, 3)
        tables.append(seen)
    assert tables[0] == tables[1] and len(set(tables[0])) == len(TRAIN)


def test_each_epoch_has_its_own_order_and_changes():
    class Noting(ArraySet):
        def read(self, indices):
            seen[-1].extend(indices.tolist())
            return super().read(indices)

    def noting(pictures, draws=None):
        drawn[-1].extend(map(tuple, draws.tolist()))
        return AUGMENTATION(pictures, draws)

    seen, drawn, noting.n_draws = [], [], AUGMENTATION.n_draws
    run = trainer(transform=noting)
    for epoch in (1, 2, 1):
        seen.append([])
        drawn.append([])
        run.train_one_epoch(Noting(TRAIN.pictures, TRAIN.labels), epoch)
    assert seen[0] == seen[2] != seen[1] and sorted(seen[0]) == sorted(seen[1]) == list(range(len(TRAIN)))
    assert drawn[0] == drawn[2] and not set(drawn[0]) & set(drawn[1])


# --- several processes ----------------------------------------------------------------------------------------------


def run_of_processes(batch_size, folder):
    """37 images, so that the last step is uneven, without batch norm and dropout."""
    settings = replace(SETTINGS, epochs=2, batch_size=batch_size, accumulate=2, optimizer="sgd")
    run = trainer(settings, network(dropout=0, norm=False), folder=folder)
    records = numbers(run.fit(pictures(37), VALIDATION))
    logits = run.predict(pictures(5, 7)).flatten().tolist()
    weights = torch.cat([parameter.detach().flatten() for parameter in run.network.parameters()]).tolist()
    about = {"processes": run.processes, "first": run.accelerator.is_main_process}
    return {"records": records, "logits": logits, "weights": weights, **about}


# --- refusals -------------------------------------------------------------------------------------------------------


def test_loss_that_is_not_a_number_keeps_the_last_good_checkpoint(tmp_path):
    class Spoil:
        def on_step_start(self, trainer, step):
            if step == 7:
                with torch.no_grad():
                    trainer.network[0].weight.fill_(float("nan"))

    with pytest.raises(
        InputError, match=r"not a number at step 7, in epoch 2.*last good checkpoint is '.*epoch_001.pt'"
    ):
        fit_in(tmp_path, hooks=[Spoil()])
    content = torch.load(tmp_path / "epoch_001.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in content["model"].values())


def test_test_loss_that_is_not_a_number():
    class Spoil:
        def on_epoch_start(self, trainer, epoch):
            trainer.network[1].running_var.fill_(float("nan"))

    with pytest.raises(InputError, match="not a number at step 4, in a test"):
        trainer(replace(SETTINGS, epochs=1), hooks=[Spoil()]).fit(TRAIN, VALIDATION)


@pytest.mark.parametrize(("train", "validation", "name"), [(0, 4, "training"), (4, 0, "validation")])
def test_empty_split(train, validation, name):
    with pytest.raises(InputError, match=f"The {name} set is empty"):
        trainer().fit(pictures(train), pictures(validation))
    with pytest.raises(InputError, match="The cross set is empty"):
        trainer().fit(TRAIN, VALIDATION, {"cross": pictures(0)})


def test_predicting_nothing():
    with pytest.raises(InputError, match="no images"):
        trainer().predict(pictures(0))
    with pytest.raises(InputError, match="no images"):
        trainer().evaluate(pictures(0))


def test_other_set_named_like_validation():
    with pytest.raises(UsageError, match="named train or val"):
        trainer().fit(TRAIN, VALIDATION, {"val": TRAIN})


def test_three_outputs():
    with pytest.raises(InputError, match=r"\(8, 3\)"):
        trainer(model=network(3)).fit(TRAIN, VALIDATION)
    with pytest.raises(InputError, match=r"\(4, 1\)"):
        fake_scores(np.zeros((4, 1)))


@pytest.mark.parametrize(
    "wrong",
    [dict(optimizer="lion"), dict(schedule="cosine"), dict(monitor="test_loss"), dict(precision="fp16"), dict(epochs=0),
     dict(batch_size=-1), dict(learning_rate=0), dict(learning_rate=float("nan")), dict(early_stopping=0), dict(accumulate=0),
     dict(epochs=1.5), dict(epochs=float("nan")), dict(clip_gradients=-1.0), dict(weight_decay=-0.1), dict(momentum=-0.5),
     dict(factor=0.0), dict(patience=-1)],
)  # fmt: skip
def test_settings_that_no_run_can_have(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TrainingSettings(**wrong)


def test_best_before_the_first_epoch():
    with pytest.raises(UsageError, match="Call fit first"):
        trainer().load_best()


def test_tensorboard_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="Give the trainer a folder"):
        trainer(tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        trainer(folder=tmp_path, tensorboard=True)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_where_it_is_wanted(capsys, progress):
    trainer(replace(SETTINGS, epochs=1), progress=progress).fit(TRAIN, VALIDATION)
    assert bool(capsys.readouterr().out) == progress


def test_losses_of_labels():
    logits = torch.tensor([2.0, -1.0])
    expected = [-np.log(1 / (1 + np.exp(-2))), -np.log(1 / (1 + np.exp(-1)))]
    assert binary_cross_entropy(logits, torch.tensor([1, 0])).tolist() == pytest.approx(expected)


def test_unreadable_picture_stops_training_by_name(tmp_path):
    cv2.imwrite(str(tmp_path / "face 0.png"), TRAIN.pictures[0])
    (tmp_path / "face 1.png").write_bytes(b"")
    paths = [tmp_path / f"face {at}.png" for at in (0, 1)]
    with pytest.raises(InputError, match="face 1"):
        trainer().fit(ImageSet(paths, [0, 1], size=12), VALIDATION)


def test_plot_names_its_axes():
    import matplotlib

    matplotlib.use("agg")
    record = {
        "epoch": 1,
        "learning_rate": 1.0,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": 1.0,
        "val_accuracy": 0.5,
    }
    axes = plot_curves(TrainingLog([record], best_epoch=1))
    assert [ax.get_ylabel() for ax in axes] == ["loss (nats)", "accuracy"]


def test_waiting_is_counted():
    import time

    class Slow(ArraySet):
        def read(self, indices):
            time.sleep(0.05)
            return super().read(indices)

    result = trainer().train_one_epoch(Slow(TRAIN.pictures, TRAIN.labels), 1)
    assert 0.1 < result.wait_s <= result.seconds


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(replace(SETTINGS, schedule="step", epochs=2)).fit(TRAIN, VALIDATION)
