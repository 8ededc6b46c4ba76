"""What the freezing notebook cannot show: every optimizer, every kind of memory, interruption, the published loops."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepfake_nb.learning.freezing import (
    AlternateFreezing,
    EpochMetrics,
    GradualUnfreezing,
    get_published_settings,
    get_stated_settings,
    is_within,
    list_moved_parameters,
    noise_clips,
    plot_moved_parameters,
    wake_norms,
)
from deepfake_nb.learning.training import (
    Trainer,
    TrainingSettings,
    binary_cross_entropy,
    cross_entropy,
    fake_scores,
    learning_portions,
)
from deepfake_nb.media.images import IMAGENET_NORMALISATION, ArraySet
from deepfake_nb.networks.devices import seeded
from deepfake_nb.networks.video_resnet import VideoResNet, kernel_groups, named_groups
from deepfake_nb.study.files import InputError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainingSettings(epochs=3, batch_size=4, learning_rate=0.01, weight_decay=0.1)
OPTIMIZERS = {"adam": {}, "adamw": {}, "sgd": {"optimizer": "sgd", "momentum": 0.9}}
TRAIN, VALIDATION = noise_clips(24), noise_clips(8, seed=1)


class TinyVideo(nn.Module):
    """One convolution of each kind, a norm behind each, a head; named like stages."""

    def __init__(self):
        super().__init__()
        self.stem = self.block((5, 3, 3), 3)
        self.wide = self.block((1, 3, 3), 4)
        self.long = self.block((3, 1, 1), 4)
        self.head = nn.Linear(4, 1)

    def block(self, kernel, channels):
        padding = tuple(side // 2 for side in kernel)
        convolution = nn.Conv3d(channels, 4, kernel, padding=padding, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d((1, 2, 2)))

    def forward(self, clips):
        maps = self.long(self.wide(self.stem(clips)))
        return self.head(maps.mean((2, 3, 4))).squeeze(1)


def tiny():
    with seeded(0, "weights"):
        return TinyVideo()


def narrow():
    with seeded(0, "weights"):
        return wake_norms(VideoResNet(width=2))


def settings_of(optimizer, **changes):
    return replace(SETTINGS, **{"optimizer": optimizer, **OPTIMIZERS[optimizer], **changes})


def trainer(*hooks, settings=SETTINGS, network=None, **options):
    return Trainer(
        network or tiny(), settings, transform=IMAGENET_NORMALISATION, loss=binary_cross_entropy, hooks=hooks,
        **options,
    )  # fmt: skip


def snapshot(run):
    """Everything that a run would remember of its network and its optimizer, by name of the tensor."""
    names = {parameter: name for name, parameter in run.network.named_parameters()}
    kept = {("network", name): value.clone() for name, value in run.network.state_dict().items()}
    for parameter, values in run.optimizer.state.items():
        for key, value in values.items():
            kept["optimizer", f"{names[parameter]} {key}"] = value.clone()
    return kept


class Diary:
    """Snapshots before each step and behind the last one."""

    def __init__(self):
        self.pages = []

    def on_step_start(self, trainer, step):
        self.pages.append(snapshot(trainer))

    def pairs(self, run):
        pages = [*self.pages, snapshot(run)]
        return list(pairwise(pages))


def changed(before, after, kind, part):
    """Whether each tensor of a kind whose name holds `part` is another afterwards."""
    names = [key for key in after if key[0] == kind and part in key[1]]
    assert names
    return [key not in before or not torch.equal(before[key], after[key]) for key in names]


# --- a held group stays, to the last bit ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("turns", [(2, 1), (1, 2), (1, 1)])
def test_phases_hold_weights_and_moments(optimizer, turns):
    rule, diary = AlternateFreezing(*turns), Diary()
    run = trainer(rule, diary, settings=settings_of(optimizer))
    run.train_one_epoch(TRAIN, 1)
    for step, (before, after) in enumerate(diary.pairs(run), start=1):
        held, learning = ("long", "wide") if rule.turn(step) == "spatial" else ("wide", "long")
        assert not any(changed(before, after, "network", f"{held}.0."))
        assert all(changed(before, after, "network", f"{learning}.0."))
        assert all(changed(before, after, "network", "stem.0.")) and all(
            changed(before, after, "network", "head")
        )
        if step > 2:
            assert not any(changed(before, after, "optimizer", f"{held}.0."))
            assert all(changed(before, after, "optimizer", f"{learning}.0."))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_full_network_groups_stay(optimizer):
    rule, diary = AlternateFreezing(2, 2), Diary()
    run = trainer(rule, diary, settings=settings_of(optimizer), network=narrow())
    run.train_one_epoch(noise_clips(16), 1)
    groups = kernel_groups(run.network)
    assert [len(groups[group]) for group in ("spatial", "temporal")] == [16, 9]
    for step, (before, after) in enumerate(diary.pairs(run), start=1):
        turn = rule.turn(step)
        for group, names in groups.items():
            moved = [not torch.equal(before["network", name], after["network", name]) for name in names]
            assert all(moved) if group in (turn, "shared") else not any(moved)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_a_plain_loop_does_wrong(optimizer):
    """Zeroed gradients instead of none: weight decay and momentum go on, so these tests can tell the difference."""

    class Zeroing:
        def on_step_start(self, trainer, step):
            if step > 1:
                trainer.network.long[0].weight.register_hook(torch.zeros_like)

    diary = Diary()
    run = trainer(Zeroing(), diary, settings=settings_of(optimizer))
    run.train_one_epoch(TRAIN, 1)
    before, after = diary.pairs(run)[-1]
    assert all(changed(before, after, "network", "long.0."))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stages_that_wait_stay_and_then_start_empty(optimizer):
    rule, diary = GradualUnfreezing(("head", "long", "wide"), (0, 1, 2)), Diary()
    run = trainer(rule, diary, settings=settings_of(optimizer))
    run.fit(TRAIN, VALIDATION)
    for step, (before, after) in enumerate(diary.pairs(run)):
        begun = ("head", "long", "wide")[: step // 6 + 1]
        for part in ("head.", "long.0", "wide.0", "stem.0"):
            moved = changed(before, after, "network", part)
            assert all(moved) if part.startswith(begun) else not any(moved)
        remembered = {name.split(".")[0] for kind, name in before if kind == "optimizer"}
        assert remembered == ({"head", "long", "wide"} & set(begun[: -1 if step % 6 == 0 else None]))
    if optimizer != "sgd":
        steps = {
            name.split(".")[0]: int(v) for (kind, name), v in snapshot(run).items() if name.endswith(" step")
        }
        assert steps == {"head": 18, "long": 12, "wide": 6}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_phases_count_steps_not_batches(accumulate):
    rule, diary = AlternateFreezing(1, 1), Diary()
    run = trainer(rule, diary, settings=replace(SETTINGS, batch_size=2, accumulate=accumulate))
    run.train_one_epoch(TRAIN, 1)
    pairs = diary.pairs(run)
    assert len(pairs) == run.step == 12 // accumulate
    for step, (before, after) in enumerate(pairs, start=1):
        held = "long" if step % 2 else "wide"
        assert not any(changed(before, after, "network", f"{held}.0."))


def test_clipping_sees_only_trainable_parameters():
    """The held group's share of the gradient norm is not there, so what learns is shortened less."""
    run = trainer(AlternateFreezing(1, 1), settings=replace(SETTINGS, clip_gradients=1e-3))
    run.train_one_epoch(noise_clips(4), 1)
    gradients = [p.grad for p in run.network.parameters() if p.grad is not None]
    assert len(gradients) == len(list(run.network.parameters())) - 1
    assert torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(1e-3, rel=1e-3)


# --- gradients that nobody wants are not computed ---------------------------------------------------------------------


def visited(rule, event, number):
    """Names of the parameters to whose accumulators a backward pass leads."""
    run = trainer(rule)
    run.network.train()
    getattr(rule, event)(run, number)
    loss = run.network(IMAGENET_NORMALISATION(TRAIN.read([0, 1]))).sum()
    names = {parameter: name for name, parameter in run.network.named_parameters()}
    found, waiting, seen = set(), [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(names[node.variable])
        waiting.extend(behind for behind, _ in node.next_functions)
    return found, len(seen)


def test_autograd_leaves_out_what_is_held():
    everything = {name for name, _ in tiny().named_parameters()}
    for step, held in ((1, "long.0.weight"), (2, "wide.0.weight")):
        assert visited(AlternateFreezing(1, 1), "on_step_start", step)[0] == everything - {held}
    head, nodes = visited(GradualUnfreezing(("head",), (0,)), "on_epoch_start", 1)
    assert head == {"head.weight", "head.bias"}
    assert nodes < visited(AlternateFreezing(), "on_step_start", 1)[1] / 3


def test_left_over_gradient_is_dropped():
    run = trainer()
    for parameter in run.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    AlternateFreezing().on_step_start(run, 1)
    without = [name for name, parameter in run.network.named_parameters() if parameter.grad is None]
    assert without == ["long.0.weight"]


# --- norms ------------------------------------------------------------------------------------------------------------


class NormsNow:
    """Which blocks' norms average, at each step."""

    def __init__(self):
        self.seen = []

    def on_step_start(self, trainer, step):
        blocks = ("stem", "wide", "long")
        self.seen.append({block for block in blocks if getattr(trainer.network, block)[1].training})


@pytest.mark.parametrize("statistics", ["move", "still"])
def test_norm_statistics_of_turns(statistics):
    diary, norms = Diary(), NormsNow()
    run = trainer(AlternateFreezing(1, 1, norm_statistics=statistics), diary, norms)
    run.fit(TRAIN, VALIDATION)
    moves = statistics == "move"
    assert all(seen == ({"stem", "wide", "long"} if moves else set()) for seen in norms.seen)
    first, last = diary.pages[0], snapshot(run)
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        assert changed(first, last, "network", buffer) == [moves] * 3
    assert all(changed(first, last, "network", ".1.weight"))  # the norms' own parameters learn in both turns


@pytest.mark.parametrize("frozen_norms", ["move", "still"])
def test_norm_statistics_of_stages(frozen_norms):
    diary, norms = Diary(), NormsNow()
    rule = GradualUnfreezing(("head", "long", "wide"), (0, 1, 2), frozen_norms=frozen_norms)
    run = trainer(rule, diary, norms)
    run.fit(TRAIN, VALIDATION)
    pairs = diary.pairs(run)
    for epoch, begun in enumerate((set(), {"long"}, {"long", "wide"})):
        averaging = {"stem", "wide", "long"} if frozen_norms == "move" else begun
        assert all(seen == averaging for seen in norms.seen[6 * epoch : 6 * epoch + 6])
        for before, after in pairs[6 * epoch : 6 * epoch + 6]:
            for block in ("stem", "wide", "long"):
                moved = changed(before, after, "network", f"{block}.1.running")
                assert moved == [block in averaging] * 2


def test_modes_and_flags_are_as_before():
    for rule in (AlternateFreezing(norm_statistics="still"), GradualUnfreezing(("head",), (0,))):
        run = trainer(rule)
        run.fit(TRAIN, VALIDATION)
        assert all(parameter.requires_grad for parameter in run.network.parameters())
        assert all(module.training for module in run.network.train().modules())


# --- the published code -------------------------------------------------------------------------------------------------


def test_published_groups():
    network = VideoResNet()
    groups = named_groups(network)
    assert {group: len(names) for group, names in groups.items()} == {
        "spatial": 1,
        "temporal": 0,
        "shared": 160,
    }
    assert sum(parameter.numel() for parameter in groups["spatial"].values()) == 47_040
    modules = GradualUnfreezing(published=True).learning_modules(7)
    assert sum(p.numel() for name, p in network.named_parameters() if is_within(name, modules)) == 2_049


class ByHand(nn.Module):
    """The tiny network under a name that the published grouping takes for the stem's."""

    def __init__(self):
        super().__init__()
        self.body = tiny()
        self.conv = self.body.stem[0]
        self.body.stem[0] = nn.Identity()

    def forward(self, clips):
        return self.body(self.conv(clips))


def batches_of(epochs, settings):
    for epoch in range(1, epochs + 1):
        for portion in learning_portions(len(TRAIN), trainer(settings=settings), epoch):
            labels = torch.as_tensor(TRAIN.labels)[portion.indices].float()
            yield epoch, IMAGENET_NORMALISATION(TRAIN.read(portion.indices)), labels


def test_published_alternate_freezing_is_two_adams():
    """As in ft_zoom_altfrz_stage2.py: a full backward pass each step, one of two optimizers over the shared tensors."""
    settings = get_published_settings("alternate", epochs=2)
    run = trainer(AlternateFreezing(3, 2, groups="name"), settings=settings, network=ByHand())
    for epoch in (1, 2):
        run.train_one_epoch(TRAIN, epoch)

    network = ByHand().train()
    groups = named_groups(network)
    assert list(groups["spatial"]) == ["conv.weight"] and not groups["temporal"]
    shared = list(groups["shared"].values())
    spatial = torch.optim.Adam([*groups["spatial"].values(), *shared], lr=1e-4, fused=True)
    temporal = torch.optim.Adam(shared, lr=1e-4, fused=True)
    for at, (_, clips, labels) in enumerate(batches_of(2, settings)):
        network.zero_grad()
        functional.binary_cross_entropy_with_logits(network(clips), labels).backward()
        (spatial if at % 5 < 3 else temporal).step()
    ours, theirs = run.network.state_dict(), network.state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_published_memory_makes_a_difference():
    weights = []
    for separate in (None, False):
        rule = AlternateFreezing(3, 2, groups="name", separate_moments=separate)
        run = trainer(rule, network=ByHand())
        run.train_one_epoch(TRAIN, 1)
        weights.append(run.network.conv.weight.detach().clone())
        assert rule.separate_moments == (separate is None)
    assert (weights[0] - weights[1]).abs().max() > 1e-4


def test_published_gradual_unfreezing_is_a_trained_head():
    """As in ft_zoom_unfrz_stage2.py: head only, norms of the whole network moving, clipped to 1, plateau on accuracy."""
    settings = get_published_settings("gradual", epochs=5)
    run = trainer(GradualUnfreezing(published=True), settings=settings)
    log = run.fit(TRAIN, VALIDATION)

    network = tiny()
    for name, parameter in network.named_parameters():
        parameter.requires_grad = any(layer in name for layer in ("head", "layer4", "layer3"))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    schedule, done = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=2), 0
    for epoch, clips, labels in batches_of(5, settings):
        if epoch - done > 1:
            schedule.step(log.records[done]["val_accuracy"])
            done += 1
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(network.train()(clips), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm=1.0)
        optimizer.step()
    ours, theirs = run.network.state_dict(), network.state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
    assert log.records[-1]["learning_rate"] == optimizer.param_groups[0]["lr"] < 1e-4


def test_stages_and_turns_as_the_papers_code_counts_them():
    rule = AlternateFreezing()
    assert [rule.turn(at + 1) == "spatial" for at in range(63)] == [at % 21 < 20 for at in range(63)]
    begun = [len(GradualUnfreezing(published=True).learning_modules(epoch)) for epoch in range(1, 8)]
    assert begun == [1, 1, 1, 2, 2, 3, 3]


# --- schedules and learning rates ---------------------------------------------------------------------------------------


def test_plateau_lowers_the_rate_of_every_stage():
    class Rates:
        seen = ()

        def on_epoch_start(self, trainer, epoch):
            self.seen += (tuple(group["lr"] for group in trainer.optimizer.param_groups),)

    rule, rates, network = GradualUnfreezing(("head", "long"), (0, 1), (1.0, 0.1)), Rates(), tiny()
    settings = get_stated_settings(
        epochs=4, patience=0, monitor="val_accuracy", learning_rate=1e-5, early_stopping=None
    )
    groups = rule.parameter_groups(network, settings.learning_rate)
    trainer(rule, rates, settings=settings, network=network, parameters=groups).fit(TRAIN, VALIDATION)
    head, below = np.array(rates.seen).T
    np.testing.assert_allclose(below, 0.1 * head)
    assert head[0] == 1e-5 and head[-1] <= 0.5e-5


def test_smaller_rate_moves_less():
    moved = {}
    for factor in (1.0, 0.01):
        rule, network = GradualUnfreezing(("head", "long"), (0, 0), (1.0, factor)), tiny()
        run = trainer(rule, network=network, parameters=rule.parameter_groups(network, 0.01))
        before = snapshot(run)
        run.train_one_epoch(TRAIN, 1)
        moved[factor] = {
            part: (run.network.state_dict()[part] - before["network", part]).norm().item()
            for part in ("head.weight", "long.0.weight")
        }
    assert moved[0.01]["long.0.weight"] < 0.05 * moved[1.0]["long.0.weight"]
    assert moved[0.01]["head.weight"] > 0.5 * moved[1.0]["head.weight"]


def test_stated_schedule_acts_before_training_stops():
    """Of waits 0, 1, 2, ..., one epoch is the longest after which the halved rate is used at all."""
    lowered = {}
    for patience in (1, 2):
        settings = get_stated_settings(
            learning_rate=1e-5, patience=patience, monitor="val_accuracy", epochs=9
        )
        log = trainer(settings=settings, network=StandsStill()).fit(TRAIN, VALIDATION)
        assert log.stopped == "no better val_accuracy for 3 epochs" and len(log.records) == 4
        lowered[patience] = log.records[-1]["learning_rate"] < 1e-5
    assert lowered == {1: True, 2: False}
    assert get_stated_settings().patience == 1


class StandsStill(nn.Module):
    """Says fake of everything."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, clips):
        return self.bias.expand(len(clips))


def test_settings_are_the_papers_and_the_codes():
    stated = get_stated_settings()
    assert (stated.optimizer, stated.learning_rate, stated.weight_decay, stated.batch_size) == (
        "adam",
        5e-6,
        0.005,
        8,
    )
    assert (stated.schedule, stated.factor, stated.early_stopping, stated.checkpoint_every) == (
        "plateau",
        0.5,
        3,
        2,
    )
    for rule, epochs, clip, schedule in (("alternate", 10, None, None), ("gradual", 7, 1.0, "plateau")):
        code = get_published_settings(rule)
        assert (code.learning_rate, code.weight_decay, code.batch_size) == (1e-4, 0.0, 4)
        assert (code.epochs, code.clip_gradients, code.schedule) == (epochs, clip, schedule)
        assert (code.early_stopping, code.monitor) == (None, "val_accuracy")
    assert get_published_settings("gradual").patience == 2
    assert get_stated_settings(epochs=1, batch_size=2).epochs == 1


# --- interruption -------------------------------------------------------------------------------------------------------

RULES = {
    "kernel": lambda: AlternateFreezing(4, 3),
    "name": lambda: AlternateFreezing(4, 3, groups="name", norm_statistics="still"),
    "separate": lambda: AlternateFreezing(5, 2, separate_moments=True),
    "gradual": lambda: GradualUnfreezing(("head", "long", "wide"), (0, 1, 3)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", RULES)
def test_interrupted_run_is_the_same_to_the_last_bit(tmp_path, name, optimizer):
    """Six steps an epoch, cycles of seven: each epoch ends in the middle of one, in either turn."""
    settings = settings_of(optimizer, epochs=4)
    network = ByHand if name == "name" else tiny
    whole = trainer(RULES[name](), settings=settings, network=network())
    whole.fit(TRAIN, VALIDATION)
    for epochs in (1, 3, 4):
        cut = trainer(
            RULES[name](), settings=replace(settings, epochs=epochs), network=network(), folder=tmp_path
        )
        log = cut.fit(TRAIN, VALIDATION)
    kept, expected = snapshot(cut), snapshot(whole)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[key], expected[key]) for key in expected)
    assert [record["val_loss"] for record in log.records] == [r["val_loss"] for r in whole.log.records]


def test_checkpoint_of_another_rule_is_refused(tmp_path):
    one = replace(SETTINGS, epochs=1)
    trainer(AlternateFreezing(4, 3), settings=one, folder=tmp_path).fit(TRAIN, VALIDATION)
    with pytest.raises(
        InputError, match=r"written under AlternateFreezing\(spatial_steps=4, .* has .*spatial_steps=5"
    ):
        trainer(AlternateFreezing(5, 3), folder=tmp_path).fit(TRAIN, VALIDATION)
    with pytest.raises(InputError, match="hooks"):
        trainer(GradualUnfreezing(("head",), (0,)), folder=tmp_path).fit(TRAIN, VALIDATION)


def test_rule_used_for_a_second_run_remembers_nothing_of_the_first():
    weights = []
    rule = AlternateFreezing(2, 2, separate_moments=True)
    for _ in range(2):
        run = trainer(rule)
        run.train_one_epoch(TRAIN, 1)
        weights.append(run.network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# --- several processes --------------------------------------------------------------------------------------------------


class NoNorms(TinyVideo):
    def block(self, kernel, channels):
        layers = super().block(kernel, channels)
        layers[1] = nn.Identity()
        return layers


def run_of_processes(batch_size):
    """Two epochs of turns, gradients accumulated, without norms: each process would normalise over its own clips."""
    with seeded(0, "weights"):
        network = NoNorms()
    diary, metrics = Diary(), EpochMetrics(VALIDATION)
    settings = replace(SETTINGS, epochs=2, batch_size=batch_size, accumulate=2, optimizer="adamw")
    run = trainer(AlternateFreezing(2, 1), diary, metrics, settings=settings, network=network)
    log = run.fit(TRAIN, VALIDATION)
    moved = [
        {
            name
            for kind, name in after
            if kind == "network" and not torch.equal(before[kind, name], after[kind, name])
        }
        for before, after in diary.pairs(run)
    ]
    weights = torch.cat([parameter.detach().flatten() for parameter in run.network.parameters()]).tolist()
    about = {"processes": run.processes, "first": run.accelerator.is_main_process}
    still = [sorted({"wide.0.weight", "long.0.weight"} - names) for names in moved]
    return {"still": still, "weights": weights, "auc": log.records[-1]["val_auc"], **about}


# --- metrics after each epoch -------------------------------------------------------------------------------------------


def test_epoch_metrics_are_scikit_learns(tmp_path):
    from sklearn import metrics

    run = trainer(EpochMetrics(VALIDATION), EpochMetrics(TRAIN, "zoom"), folder=tmp_path)
    record = run.fit(TRAIN, VALIDATION).records[-1]
    for name, dataset in (("val", VALIDATION), ("zoom", TRAIN)):
        labels, found = np.asarray(dataset.labels), fake_scores(run.predict(dataset))
        assert record[f"{name}_auc"] == pytest.approx(metrics.roc_auc_score(labels, found))
        for metric in ("precision", "recall", "f1"):
            score = getattr(metrics, f"{metric}_score")(labels, found > 0.5, zero_division=0)
            assert record[f"{name}_{metric}"] == pytest.approx(score)
    assert json.loads((tmp_path / "log.json").read_text())["val_auc"][-1] == record["val_auc"]


def test_epoch_metrics_change_nothing():
    with_metrics, without = trainer(EpochMetrics(VALIDATION)), trainer()
    for run in (with_metrics, without):
        run.fit(TRAIN, VALIDATION)
    weights = [run.network.state_dict() for run in (with_metrics, without)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_epoch_metrics_reuse_the_predictions_of_the_trainer():
    metrics, record, expected = EpochMetrics(VALIDATION), {}, {}
    run = trainer()
    EpochMetrics(VALIDATION).on_epoch_end(run, 1, expected)
    said = {id(dataset): run.predict(dataset) for dataset in (VALIDATION, TRAIN)}
    metrics.on_tested(run, VALIDATION, -said[id(VALIDATION)])  # of an epoch before
    metrics.on_epoch_start(run, 1)
    for dataset in (VALIDATION, TRAIN):
        metrics.on_tested(run, dataset, said[id(dataset)])
    run.predict = None
    metrics.on_epoch_end(run, 1, record)
    assert record == expected


def test_epoch_metrics_of_two_outputs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 32 * 32, 2))
    run = Trainer(
        model, replace(SETTINGS, epochs=1), transform=IMAGENET_NORMALISATION, loss=cross_entropy,
        hooks=[EpochMetrics(VALIDATION)],
    )  # fmt: skip
    assert 0 <= run.fit(TRAIN, VALIDATION).records[0]["val_auc"] <= 1


@pytest.mark.parametrize(("label", "missing"), [(0, "fake"), (1, "real")])
def test_epoch_metrics_of_one_class(label, missing):
    with pytest.raises(InputError, match=f"'val' holds no {missing} media"):
        EpochMetrics(ArraySet(VALIDATION.pictures, [label] * len(VALIDATION)))


# --- what moves ---------------------------------------------------------------------------------------------------------


def test_moved_parameters_measures_rather_than_reads():
    """A rule that only says that it freezes is found out."""

    class Pretends(AlternateFreezing):
        def on_step_start(self, trainer, step):
            pass

    network = narrow()
    total = sum(parameter.numel() for parameter in network.parameters())
    assert list_moved_parameters(Pretends(1, 1), network, 3).moved.tolist() == [total] * 3
    groups = kernel_groups(network)
    held = [sum(p.numel() for p in groups[group].values()) for group in ("temporal", "spatial")]
    expected = [total - held[0], total - held[1], total - held[0]]
    assert list_moved_parameters(AlternateFreezing(1, 1), network, 3).moved.tolist() == expected


def test_moved_parameters_leaves_network_and_rule_alone():
    with seeded(0, "weights"):
        network = VideoResNet(width=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rule = AlternateFreezing(1, 1, separate_moments=True)
    list_moved_parameters(rule, network, 3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert rule == AlternateFreezing(1, 1, separate_moments=True) and not rule.memory.waiting


def test_moved_parameters_of_stages_by_epoch():
    rule = GradualUnfreezing(("head", "s5"), (0, 2), learning_rates=(1.0, 0.1))
    network = narrow()
    stages = [sum(p.numel() for p in getattr(network, stage).parameters()) for stage in ("head", "s5")]
    table = list_moved_parameters(rule, network, 5, steps_per_epoch=2)
    assert table.step.tolist() == [1, 2, 3, 4, 5]
    assert table.moved.tolist() == [stages[0]] * 4 + [sum(stages)]


def test_plot_says_every_number():
    import matplotlib

    matplotlib.use("agg")
    table = list_moved_parameters(AlternateFreezing(1, 1), narrow(), 2)
    axes = plot_moved_parameters({"turns": table, "again": table, "and again": table}, total=9_999)
    assert [ax.get_title() for ax in axes] == ["turns", "again", "and again"]
    assert axes[0].get_ylabel() == "parameters (millions)"
    said = " ".join(text.get_text() for text in axes[0].texts)
    assert all(f"{moved:,}" in said for moved in table.moved)


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(dict(spatial_steps=0), "0 spatial and 1 temporal"), (dict(temporal_steps=-1), "do not alternate"),
     (dict(groups="shape"), "'kernel', 'name'"), (dict(norm_statistics="frozen"), "'move', 'still'")],
)  # fmt: skip
def test_phases_that_do_not_exist(wrong, said):
    with pytest.raises(UsageError, match=said):
        AlternateFreezing(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(dict(epochs=(0, 1)), "not have one epoch"), (dict(epochs=(0, 2, 1)), "Let the first begin"), (dict(epochs=(1, 2, 3)), "Let"),
     (dict(learning_rates=(1.0,)), "not have one epoch and one learning rate"), (dict(frozen_norms="off"), "'still', 'move'"),
     (dict(stages=(), epochs=()), "not have one epoch")],
)  # fmt: skip
def test_stages_that_do_not_fit(wrong, said):
    with pytest.raises(UsageError, match=said):
        GradualUnfreezing(**wrong)


def test_module_that_the_network_has_not():
    rule = GradualUnfreezing(("head", "layer4"), (0, 1))
    with pytest.raises(
        UsageError, match=r"no module .layer4. to train\. The network has: stem, wide, long, head"
    ):
        trainer(rule).fit(TRAIN, VALIDATION)
    with pytest.raises(UsageError, match="layer4"):
        rule.parameter_groups(tiny(), 0.1)


def test_learning_rates_without_parameter_groups():
    with pytest.raises(UsageError, match=r"Give the Trainer parameters=rule\.parameter_groups"):
        trainer(GradualUnfreezing(("head", "long"), (0, 1), (1.0, 0.1))).fit(TRAIN, VALIDATION)


def test_settings_of_no_rule():
    with pytest.raises(UsageError, match="'alternate', 'gradual'"):
        get_published_settings("alternating")
