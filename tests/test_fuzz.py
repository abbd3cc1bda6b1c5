"""The fuzz targets do what they say, without a fuzzer."""

import numpy as np
import pytest
from fuzz import artifact, recipe, shards

TARGETS = [artifact, recipe, shards]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_a_target_takes_its_seeds_and_damage_to_them(target):
    rng = np.random.default_rng(0)
    seeds = list(target.seeds())
    for seed in seeds:
        target.one_input(seed)
        for _ in range(3):
            mutant = bytearray(seed)
            mutant[int(rng.integers(len(mutant)))] ^= 1 << int(rng.integers(8))
            target.one_input(bytes(mutant))
    for odd in (b"", b"\x00", b"\x01", b"\x02", b"\xff" * 50):
        target.one_input(odd)


@pytest.mark.parametrize(
    ("target", "broken"), [(artifact, "load"), (recipe, "load_recipe"), (shards, "read_shard_bytes")]
)
def test_a_target_lets_no_other_error_pass(target, broken, monkeypatch):
    def fails(*arguments):
        raise KeyError("a mistake of ours")

    seed = next(iter(target.seeds()))
    monkeypatch.setattr(target, broken, fails)
    with pytest.raises(KeyError):
        target.one_input(seed)
