"""Keras `fit` on `chunkstore.tf.dataset`: the handwritten digits, learned to a stated accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import chunkstore

tf = pytest.importorskip("tensorflow")
datasets = pytest.importorskip("sklearn.datasets")

from chunkstore.tf import dataset  # noqa: E402 - needs TensorFlow

NUM_TRAIN = 1500  # of 1797
ACCURACY = 0.93  # a linear model on the pixels reaches about 0.95


def test_digits(tmp_path: Path) -> None:
    """Convert once, then `fit` on shuffled batches and `evaluate` on what was held back."""
    digits = datasets.load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    np.savez(tmp_path / "digits.npz", image=images, label=labels)
    chunkstore.convert(tmp_path / "digits.npz", tmp_path / "digits.cks", layout="rows")
    reader = chunkstore.open(tmp_path / "digits.cks")
    assert len(reader) == len(images)
    ids = np.random.default_rng(0).permutation(len(reader))
    train, held_back = reader.select(ids[:NUM_TRAIN]), reader.select(ids[NUM_TRAIN:])

    def pair(batch):  # type: ignore[no-untyped-def]
        return tf.cast(batch["image"], tf.float32) / 16, batch["label"]

    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(10)])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    history = model.fit(
        dataset(train, 50, shuffle=True, seed=2).map(pair),
        validation_data=dataset(held_back, 100).map(pair),
        epochs=8,
        shuffle=False,  # Keras would shuffle arrays only, and warns of it
        verbose=0,
    )
    assert len(history.history["loss"]) == 8
    _, accuracy = model.evaluate(dataset(held_back, 100).map(pair), verbose=0)
    assert accuracy >= ACCURACY


class StopAt(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Ends the training behind a step, as a machine that is taken away would."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_left = num_steps

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """See the class."""
        self.num_left -= 1
        if not self.num_left:
            raise InterruptedError


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras itself
def test_backup_and_restore(tmp_path: Path) -> None:
    """Ended inside the third epoch and begun again with the epoch of the backup, `fit` ends with the very weights that
    it has without an interruption: also the order of the batches went on.
    """
    rng = np.random.default_rng(0)
    with chunkstore.Writer(tmp_path / "x.cks") as writer:
        writer.add_batch({"x": rng.normal(size=(200, 8)).astype(np.float32), "y": rng.normal(size=200)})

    def fit(epoch: int, callbacks: list[object]) -> list[np.ndarray]:  # type: ignore[type-arg]
        tf.keras.utils.set_random_seed(1)
        model = tf.keras.Sequential([tf.keras.Input((8,)), tf.keras.layers.Dense(1)])
        model.compile("adam", "mse")
        train = dataset(tmp_path / "x.cks", 16, shuffle=True, epoch=epoch).map(lambda batch: (batch["x"], batch["y"]))
        model.fit(train, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        return model.get_weights()

    def backup() -> object:
        return tf.keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(InterruptedError):
        fit(0, [backup(), StopAt(2 * 13 + 5)])
    epoch = json.loads((tmp_path / "backup" / "training_metadata.json").read_text())["epoch"]
    assert epoch == 2
    for mine, other in zip(fit(epoch, [backup()]), fit(0, []), strict=True):
        assert np.array_equal(mine, other)


def test_languages_of_voices(tmp_path: Path, shared_data: Path) -> None:
    """Token ids of different length, as RaggedTensors: a linear model learns which of 13 languages it reads."""
    chunkstore.convert(shared_data / "bark-voices", tmp_path / "voices.cks", layout="files", exclude=["announcer.npz"])
    reader = chunkstore.open(tmp_path / "voices.cks")
    assert reader.keys is not None
    names = [key.rpartition("/")[2].partition("_")[0] for key in reader.keys]
    languages = sorted(set(names) - {"speaker"})
    labels = tf.constant([languages.index(name) if name in languages else -1 for name in names], tf.int64)
    chosen = np.flatnonzero(labels.numpy() >= 0)[np.random.default_rng(0).permutation(260)]

    def pair(batch, labels):  # type: ignore[no-untyped-def]
        counts = tf.math.bincount(tf.cast(batch["semantic_prompt"], tf.int32), minlength=10000, axis=-1)
        return tf.minimum(tf.ensure_shape(tf.cast(counts, tf.float32), [None, 10000]), 3), labels

    def batches(ids, batch_size):  # type: ignore[no-untyped-def]
        tokens = dataset(reader.select(ids), batch_size, fields=["semantic_prompt"])
        answers = tf.data.Dataset.from_tensor_slices(tf.gather(labels, ids)).batch(batch_size)
        return tf.data.Dataset.zip(tokens, answers).map(pair)

    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential([tf.keras.layers.Dense(len(languages))])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
    model.fit(batches(chosen[:200], 20), epochs=12, shuffle=False, verbose=0)
    _, accuracy = model.evaluate(batches(chosen[200:], 20), verbose=0)
    assert len(languages) == 13
    assert accuracy >= 0.85  # logistic regression reaches 0.97, a guess 0.08
