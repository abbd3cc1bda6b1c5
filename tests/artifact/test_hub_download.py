"""Models by name from the Hugging Face Hub: its cache and its errors. The tests need no network."""

import importlib
import logging
import re
import sys

import numpy as np
import pytest

import reeltag
from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 5, 8), dtype=np.uint8)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return the Hub's library, offline and with an empty cache."""
    hub = pytest.importorskip("huggingface_hub", reason="needs reeltag[hub]")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub


@pytest.fixture
def cached(hub, tiny_model, tmp_path):
    """Write a snapshot of user/tagger to the cache, in the library's layout."""
    repo = tmp_path / "hub" / "models--user--tagger"
    reeltag.load(tiny_model).save_pretrained(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT


def test_a_cached_model_opens_offline_with_a_warning(cached, tiny_model, caplog):
    with caplog.at_level(logging.WARNING, logger="reeltag"):
        tagger = reeltag.from_pretrained("user/tagger")
    np.testing.assert_array_equal(tagger.predict(FRAMES), reeltag.load(tiny_model).predict(FRAMES))
    assert "user/tagger: the Hugging Face Hub cannot be reached" in caplog.text
    assert str(cached) in caplog.text
    assert tagger.source == cached / "model.safetensors"


def test_offline_only_the_cached_revision_opens(cached):
    reeltag.from_pretrained("user/tagger", revision=COMMIT)
    with pytest.raises(UsageError, match="its cache has no complete copy"):
        reeltag.from_pretrained("user/tagger", revision="v2")


def test_offline_a_model_that_is_not_cached_is_an_error(hub):
    with pytest.raises(UsageError, match=r"^user/other: the Hugging Face Hub cannot be reached .*check the network"):
        reeltag.from_pretrained("user/other")


def test_online_the_requested_revision_is_downloaded_without_a_warning(hub, cached, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(hub, "model_info", lambda name, revision: asked.append((name, revision)))

    def download(name, revision, local_files_only, allow_patterns):
        asked.append((name, revision, local_files_only))
        assert "model.safetensors" in allow_patterns
        return str(cached)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with caplog.at_level(logging.WARNING, logger="reeltag"):
        reeltag.from_pretrained("user/tagger", revision="v1", device="cpu")
    assert asked == [("user/tagger", "v1"), ("user/tagger", "v1", False)]
    assert not caplog.records


@pytest.mark.parametrize(("status", "refused"), [(401, True), (404, True), (503, False)])
def test_a_client_error_is_an_error_and_a_server_error_falls_back_on_the_cache(
    hub, cached, monkeypatch, status, refused
):
    def answer(name, revision):
        error = OSError(f"{status} from the Hub\nmore")
        error.response = type("Response", (), {"status_code": status})
        raise error

    monkeypatch.setattr(hub, "model_info", answer)
    if refused:
        with pytest.raises(
            UsageError, match=rf"no such model on the Hugging Face Hub \({status} from the Hub\); check"
        ):
            reeltag.from_pretrained("user/tagger")
    else:
        reeltag.from_pretrained("user/tagger")


def test_an_interrupted_download_is_an_error(hub, monkeypatch):
    def broken(*arguments, **options):
        raise OSError("connection reset")

    monkeypatch.setattr(hub, "model_info", lambda name, revision: None)
    monkeypatch.setattr(hub, "snapshot_download", broken)
    with pytest.raises(UsageError, match=r"user/tagger: was not downloaded completely \(connection reset\); try again"):
        reeltag.from_pretrained("user/tagger")


def test_invalid_names_of_hub_models_are_refused(hub):
    for name in ("nowhere", "./a/b/c", "a b/c"):
        with pytest.raises(UsageError, match="no such folder; give one that `reeltag share` wrote"):
            reeltag.from_pretrained(name)
    with pytest.raises(UsageError, match="no such model"):
        reeltag.from_pretrained("-user/tagger")


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not on the Hub, so revision 'v1' does not apply"):
        reeltag.from_pretrained(tmp_path, revision="v1")


def test_without_huggingface_hub_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=f"user/tagger: .* needs its library; {re.escape(install_command('hub'))}"):
        reeltag.from_pretrained("user/tagger")
