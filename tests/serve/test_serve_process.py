"""`reeltag serve` as a process: it tells its address, ends when it is told to, and survives bad clients."""

import json
import signal
import socket
import sys
import threading
from urllib.request import urlopen

import numpy as np
import pytest

from conftest import make_video
from reeltag.cli.main import main
from reeltag.core.environment import install_command
from reeltag.inference.predictor import load
from serving import SCHEMA, TFRECORD, frames_of, post, raw, record, scores_of, service, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "m.reeltag")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered_and_the_exit_code_is_0(model, number):
    with service(model) as (process, port):
        assert post(port, record(make_video(SCHEMA)))[0] == 200
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {TFRECORD}\r\n"
        body = record(make_video(SCHEMA, 5, name="late"))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:20])
            assert post(port, record(make_video(SCHEMA)))[0] == 200  # so that the other has begun
            process.send_signal(number)
            threading.Timer(0.3, connection.sendall, [body[20:]]).start()
            found = b""
            while chunk := connection.recv(65536):
                found += chunk
        assert found.startswith(b"HTTP/1.1 200") and b'"late"' in found
        assert process.wait(20) == 0
        out, err = process.communicate()
        assert (out, err) == ("", "")


@pytest.mark.slow
def test_it_computes_as_auto_chooses_unless_told_otherwise(tmp_path):
    path = write_model(tmp_path / "m.reeltag", config={"family": "netvlad", "clusters": 64, "hidden": 128})
    frames = frames_of(20)
    body = json.dumps({"frames": frames.tolist()})
    said, computed = [], []
    for options in ((), ("--mode", "bf16")):
        with service(path, *options) as (_, port):
            said.append(scores_of(post(port, body, "application/json")[1]))
            with urlopen(f"http://127.0.0.1:{port}/model") as answer:
                computed.append(json.load(answer)["computed"])
    assert [{*each["ways"].values()} for each in computed] == [{"exact"}, {"bf16"}]
    assert "weights" in computed[0]["why"] and "asked for" in computed[1]["why"]
    exact, bf16 = (load(path, mode).predict(frames) for mode in ("exact", "bf16"))
    assert abs(bf16 - exact).max() > 1e-5
    np.testing.assert_allclose(said, [exact, bf16], atol=1.5e-6)  # as many decimals as the answer has


def test_it_survives_clients_that_break_off_and_bytes_that_are_no_http(model):
    body = record(make_video(SCHEMA))
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {TFRECORD}\r\n".encode()
    with service(model, "--max-body-mb", "0.01") as (process, port):
        with socket.create_connection(("127.0.0.1", port)) as short:
            short.sendall(head + b"Content-Length: 500\r\n\r\n" + body[:20])
        assert b"400" in raw(port, b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b" 400 " in raw(port, head + b"Content-Length: -5\r\n\r\n")
        assert b" 413 " in raw(port, head + b"Content-Length: 99999999999999999999\r\n\r\n")
        many = b"".join(b"1000\r\n" + bytes(4096) + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
        assert b" 413 " in raw(port, head + b"Transfer-Encoding: chunked\r\n\r\n", many)
        assert post(port, b"[" * 10_001, "application/json")[0] == 413
        assert post(port, b"[" * 5_000, "application/json")[0] == 400
        status, answer = post(port, json.dumps({"frames": frames_of(4).tolist()}), "application/json")
        assert status == 200 and len(answer["tags"]) == 8
        process.terminate()
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_body_that_does_not_come_is_given_up(model):
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {TFRECORD}\r\nContent-Length: 100\r\n\r\n"
    with service(model, "--timeout", "0.5") as (_, port), socket.create_connection(("127.0.0.1", port), 20) as slow:
        slow.sendall(head.encode() + b"few")
        found = slow.recv(65536)
        assert b" 408 " in found.split(b"\r\n")[0]
        assert post(port, record(make_video(SCHEMA)))[0] == 200


def test_what_cannot_be_served_is_said_in_one_message(model, tmp_path, capsys, monkeypatch):
    def fails(*arguments):
        assert main(["serve", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "nowhere.reeltag" in fails(tmp_path / "nowhere.reeltag")
    assert "max-batch: must be a number above 0" in fails(model, "--max-batch", 0)
    assert f"no file in {tmp_path} matches" in fails(model, "--samples", tmp_path / "*.tfrecord")
    assert "choose another --host or --port" in fails(model, "--host", "host.invalid")
    assert "choose another --port" in fails(model, "--port", 70000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --host or --port" in fails(model, "--port", taken.getsockname()[1])
    for module in [name for name in sys.modules if name.startswith("reeltag.serve")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert install_command("serve") in fails(model)
