"""Finished models under a smaller budget: which of them, in how many bits, with which weights.

    python examples/squeeze_an_ensemble.py [FOLDER]

Trains three models first, which stand for .reeltag files that you have; then a recipe that trains nothing imports them,
measures each encoding on the hold-out, and packs the best ensemble that fits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import reeltag

DATA = """
name = "{name}"
budget_mb = {budget}

[data.synthetic]
train_videos = 600
test_videos = 200
classes = 20

[training]
epochs = 3
batch_size = 32
frames = 20
learning_rate = 5e-3
schedule = "cosine"
"""
MODELS = """
[models.wide]
family = "mean"
hidden = 256
bn_decay = 0.9

[models.netvlad]
family = "netvlad"
clusters = 8
hidden = 64
bn_decay = 0.9

[models.dbof]
family = "dbof"
clusters = 256
hidden = 64
bn_decay = 0.9
"""


def main(folder: Path) -> None:
    """Train, then squeeze."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = folder / "trained.toml"
    trained.write_text(DATA.format(name="trained", budget=5) + MODELS)
    files = {name: Path(file) for name, file in reeltag.train_models(trained, out=folder / "trained").items()}
    whole = sum(file.stat().st_size for file in files.values())
    squeezed = folder / "squeezed.toml"
    imported = "".join(f'{name} = "{file.as_posix()}"\n' for name, file in files.items())
    encodings = '\n[quantization]\nencodings = ["float16", "channel-8", "group-4"]\n'
    squeezed.write_text(
        DATA.format(name="squeezed", budget=round(whole / 3e6, 3)) + f"{encodings}\n[imported]\n{imported}"
    )
    done = reeltag.run(squeezed, out=folder / "squeezed")
    print(f"three files of {whole / 1e6:.2f} MB became one of {Path(done.file).stat().st_size / 1e6:.2f} MB")
    for member in done.results["shipped"]:
        print(f"  {member['name']:<8} {member['encoding']:<10} weight {member['weight']:.3f}")
    print(f"test GAP {done.results['test']['file']['gap']:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/squeeze"))
