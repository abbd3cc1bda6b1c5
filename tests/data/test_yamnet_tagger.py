"""A tagger that learns kinds of sound from YAMNet's features, through the commands, as a user would."""

import json
import wave

import numpy as np
import pytest

from conftest import DATA
from reeltag.cli.main import main

YAMNET = DATA / "extractors" / "yamnet_spectra_in.tflite"
KINDS = ("clicks", "noise", "sweep", "tone")
RATE = 16000


def generated(rng, kind):
    """Three to six seconds of a kind of sound, with another pitch, pace and loudness each time."""
    seconds = rng.uniform(3, 6)
    t = np.arange(round(seconds * RATE)) / RATE
    if kind == "tone":
        x = np.sin(2 * np.pi * rng.uniform(200, 3000) * t)
    elif kind == "noise":
        x = rng.normal(0, 0.3, len(t)).clip(-1, 1)
    elif kind == "sweep":
        low, high, period = rng.uniform(200, 500), rng.uniform(1500, 4000), rng.uniform(0.5, 2)
        x = np.sin(2 * np.pi * np.cumsum(low + (high - low) * (t / period % 1)) / RATE)
    else:
        x = np.zeros(len(t))
        x[(np.arange(0, seconds, 1 / rng.uniform(2, 8)) * RATE).astype(int)] = 1
    return rng.uniform(0.1, 0.9) * x


def write_sounds(folder, rng, count):
    """Write sounds of each kind, and labels.csv; return the kind of each file."""
    folder.mkdir()
    kinds = {f"{number}-{count}.wav": KINDS[number % len(KINDS)] for number in range(count * len(KINDS))}
    for name, kind in kinds.items():
        with wave.open(str(folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((generated(rng, kind) * 32767).astype("<i2").tobytes())
    (folder / "labels.csv").write_text("file,labels\n" + "".join(f"{name},{kind}\n" for name, kind in kinds.items()))
    return kinds


@pytest.mark.slow
def test_a_tagger_on_yamnet_tells_sounds_apart(tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    if not YAMNET.exists():
        pytest.skip(f"no {YAMNET}")
    rng = np.random.default_rng(26)
    write_sounds(tmp_path / "sounds", rng, 15)
    unheard = write_sounds(tmp_path / "unheard", rng, 6)
    heard = ["--image", "none", "--audio", f"yamnet:{YAMNET}"]
    labels = ["--labels", str(tmp_path / "sounds" / "labels.csv"), "--out", str(tmp_path / "shards")]
    assert main(["extract", str(tmp_path / "sounds"), *labels, *heard]) == 0
    sets = [f"data.root={tmp_path / 'shards'}", "training.epochs=50", "models.netvlad.bn_decay=0.9"]  # for so few steps
    run = ["run", str(tmp_path / "shards" / "recipe.toml"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*run, *(part for each in sets for part in ("--set", each))]) == 0
    capsys.readouterr()
    model = ["--model", str(tmp_path / "run" / "model.reeltag"), "--audio", f"yamnet:{YAMNET}"]
    assert main(["tag", str(tmp_path / "unheard"), *model, "--json", "--top", "1"]) == 0
    tagged = json.loads(capsys.readouterr().out)["videos"]
    found = {video["id"]: video["tags"][0]["name"] for video in tagged}
    assert found.keys() == unheard.keys()
    assert sum(found[name] == kind for name, kind in unheard.items()) >= 23  # of 24
