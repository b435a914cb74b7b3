"""The training recipe: what it draws, what it learns from, and that it can be taken up again."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from scripts.segmentation_error import CLASSES, ORDERS, POWERSET, frame_errors, powerset_loss
from scripts.segmentation_trainer import Recipe, Trainer, build_network, export, measure
from scripts.simulate_mixtures import RATE, Simulator, Voices, load_voices, local_speakers, num_frames
from scripts.train_segmentation import MixtureBatches, main

TINY = Recipe(seed=7, durations=(1.0, 1.5), hidden=8, batch_seconds=3.0, steps=6, warm_up_steps=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def voices() -> Voices:
    """Five people who hum: each a tone of their own, in chunks of different lengths."""
    rng = np.random.default_rng(0)
    return Voices(
        {
            f"voice{v}": [
                (np.sin(2 * np.pi * (120 + 60 * v) * np.arange(n) / RATE) + 0.1 * rng.standard_normal(n)).astype(
                    np.float32
                )
                for n in rng.integers(RATE // 2, 2 * RATE, size=3)
            ]
            for v in range(5)
        }
    )


def random_batch(seed: int, frames: int = 40):
    rng = torch.Generator().manual_seed(seed)
    log_probabilities = torch.randn(4, frames, len(CLASSES), generator=rng).log_softmax(-1)
    activity = torch.rand(4, frames, 3, generator=rng) < 0.4
    return log_probabilities, activity, activity.sum(-1) <= 2


def test_a_batch_depends_on_the_seed_and_its_number_alone(voices):
    batches = MixtureBatches(Simulator(voices), TINY)
    later_first = [batches[step] for step in (3, 0, 3)]
    again = MixtureBatches(Simulator(voices), TINY)[3]
    for one, other in zip(later_first[0], later_first[2], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(later_first[0], again, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(later_first[0][0][0, 0, :RATE], later_first[1][0][0, 0, :RATE])
    other_seed = MixtureBatches(Simulator(voices), replace(TINY, seed=8))[3]
    assert not torch.equal(again[0][0, 0, :RATE], other_seed[0][0, 0, :RATE])


def test_speech_is_louder_where_the_truth_says_somebody_speaks(voices):
    mixtures, target, scored = Simulator(voices, augment=False).batch(np.random.default_rng(3), 40, 5 * RATE)
    assert target.shape == (40, num_frames(5 * RATE), 3)
    centres = 495 + 270 * np.arange(target.shape[1])
    power = np.stack([np.square(mixtures[:, 0, c - 135 : c + 135]).mean(-1) for c in centres], axis=1)
    spoken = target.any(-1) & scored
    assert 0.3 < spoken.mean() < 0.98
    assert np.median(power[spoken]) > 10 * np.median(power[~target.any(-1) & scored])


def test_a_fourth_voice_and_three_at_once_do_not_count():
    activity = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]], np.bool_)
    target, scored = local_speakers(activity)
    assert scored.tolist() == [True, False, True, False, False, True]
    assert target[:, 0].tolist() == activity[:, 0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_trying_every_order_by_hand(seed):
    log_probabilities, target, scored = random_batch(seed)
    by_hand = []
    for window in range(len(target)):
        costs = []
        for order in itertools.permutations(range(3)):
            cost, counted = 0.0, 0
            for frame in range(target.shape[1]):
                if scored[window, frame]:
                    speakers = tuple(i for i, s in enumerate(order) if target[window, frame, s])
                    cost -= float(log_probabilities[window, frame, CLASSES.index(speakers)])
                    counted += 1
            costs.append(cost / counted)
        by_hand.append(min(costs))
    assert float(powerset_loss(log_probabilities, target, scored)) == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_the_order_of_local_speakers_makes_no_difference():
    log_probabilities, target, scored = random_batch(5)
    for order in ORDERS:
        shuffled = target[:, :, order]
        assert torch.allclose(
            powerset_loss(log_probabilities, shuffled, scored), powerset_loss(log_probabilities, target, scored)
        )
        assert frame_errors(log_probabilities, shuffled, scored) == frame_errors(log_probabilities, target, scored)


def test_frame_errors_tell_missed_false_and_confused_frames_apart():
    truth = [(0,), (0,), (0,), (0,), (0, 1), (1,), (1,), ()]
    found = [(2,), (2,), (2,), (1,), (2,), (1,), (), (1,)]  # speaker 0 is called 2; one confused, two missed, one false
    target = torch.tensor([[[s in speakers for s in range(3)] for speakers in truth]])
    log_probabilities = torch.full((1, len(found), len(CLASSES)), -9.0)
    for frame, speakers in enumerate(found):
        log_probabilities[0, frame, CLASSES.index(speakers)] = 0.0
    errors = frame_errors(log_probabilities, target, torch.ones(1, len(found), dtype=torch.bool))
    assert (errors.missed, errors.false_alarm, errors.confused, errors.spoken) == (2, 1, 1, 8)
    assert errors.rate == 0.5


def test_frames_and_classes_are_those_of_the_network():
    network = build_network(layers=2, hidden=8).eval()
    with torch.inference_mode():
        for num_samples in (RATE, 5 * RATE, 5 * RATE + 123):
            assert network(torch.zeros(1, 1, num_samples)).shape == (1, num_frames(num_samples), len(CLASSES))
    powerset = pytest.importorskip("pyannote.audio.utils.powerset").Powerset(3, 2)
    assert torch.equal(powerset.mapping, POWERSET)


def test_a_resumed_run_equals_an_uninterrupted_one(voices, tmp_path):
    batches = MixtureBatches(Simulator(voices), TINY)
    straight = Trainer(TINY, CPU)
    losses = [straight.learn(batches[step]) for step in range(TINY.steps)]

    begun = Trainer(TINY, CPU)
    for step in range(3):
        begun.learn(batches[step])
    begun.save(tmp_path / "checkpoint.pt")
    torch.manual_seed(999)
    resumed = Trainer(replace(TINY, seed=123), CPU)  # its own beginnings must not shine through
    resumed.resume(tmp_path / "checkpoint.pt")
    assert [resumed.learn(batches[step]) for step in range(3, TINY.steps)] == losses[3:]
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    for name, tensor in straight.average.items():
        assert torch.equal(tensor, resumed.average[name]), name


def test_the_loss_falls_on_a_batch_seen_again_and_again(voices):
    batch = MixtureBatches(Simulator(voices), TINY)[0]
    trainer = Trainer(replace(TINY, steps=100, learning_rate=5e-3), CPU)
    losses = [trainer.learn(batch) for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]


def test_frozen_filters_stay_as_they_were(voices):
    trainer = Trainer(replace(TINY, freeze_filters=True), CPU)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.learn(MixtureBatches(Simulator(voices), TINY)[0])
    after = trainer.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("sincnet.wav_norm1d", "sincnet.conv1d.0", "sincnet.norm1d.0")) for name in changed)
    assert {"sincnet.conv1d.1.weight", "lstm.weight_hh_l0", "classifier.weight"} <= changed


def test_exported_weights_begin_another_run_and_measuring_changes_nothing(voices, tmp_path):
    trainer = Trainer(TINY, CPU)
    batch = MixtureBatches(Simulator(voices), TINY)[0]
    trainer.learn(batch)
    export(trainer.network.state_dict(), tmp_path / "weights.safetensors", {"layers": 2})
    other = Trainer(replace(TINY, seed=1), CPU)
    before = {name: tensor.clone() for name, tensor in other.network.state_dict().items()}
    errors = measure(other.network, trainer.network.state_dict(), batch, CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.network.state_dict().items())
    other.initialise(tmp_path / "weights.safetensors")
    assert measure(other.network, other.average, batch, CPU) == errors
    assert errors.spoken > 0


def test_nobody_is_in_both_parts_of_a_split(voices):
    rest, held_out = voices.split(np.random.default_rng(1), 2)
    assert len(rest.chunks) == 3
    assert len(held_out.chunks) == 2
    assert not set(rest.chunks) & set(held_out.chunks)
    with pytest.raises(ValueError, match="hold out"):
        voices.split(np.random.default_rng(1), 5)


@pytest.mark.parametrize("folder", ["members", "Members", "librispeech/members", "members/part"])
def test_the_members_are_never_trained_on(tmp_path: Path, folder: str):
    (tmp_path / folder / "someone").mkdir(parents=True)
    with pytest.raises(ValueError, match="never trained on"):
        load_voices([tmp_path / folder])


def test_the_members_are_refused_under_another_name_and_from_above(tmp_path: Path):
    (tmp_path / "voices" / "members").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "voices" / "members")
    for folder in (tmp_path / "alias", tmp_path / "voices"):
        with pytest.raises(ValueError, match="never trained on"):
            load_voices([folder])


def test_a_short_run_on_real_voices_leaves_weights_checkpoint_and_notes(audio, tmp_path, capsys):
    guests = sorted((audio / "librispeech" / "guests").iterdir())[:4]
    for guest in guests:
        (tmp_path / "voices" / guest.name).mkdir(parents=True)
        for recording in guest.iterdir():
            (tmp_path / "voices" / guest.name / recording.name).symlink_to(recording)
    out = tmp_path / "out"
    small = ["--duration", "1", "--batch-seconds", "2", "--validation-durations", "2", "--validation-seconds", "8"]
    data = ["--voices", str(tmp_path / "voices"), "--held-out", "1", "--workers", "0", "--out", str(out)]
    main([*data, *small, "--steps", "2"])
    main([*data, *small, "--steps", "3", "--resume", str(out / "checkpoint.pt")])
    with safe_open(out / "best.safetensors", framework="pt") as weights:
        assert weights.metadata()["voices"] == "3"
        assert "classifier.weight" in weights.keys()  # noqa: SIM118  safe_open is no mapping
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 3
    assert (out / "NOTES").read_text().startswith("step ")

    capsys.readouterr()
    evaluated = ["--evaluate", str(out / "best.safetensors"), "--recordings", str(audio / "ami")]
    main([*evaluated, "--validation-durations", "15"])
    assert "15 s: " in capsys.readouterr().out
