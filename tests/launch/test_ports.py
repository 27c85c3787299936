"""A port that is taken, and numbers that are none: a sentence with the fix, status 2, before anything is launched."""

import importlib.util
import socket
import sys

import pytest
import torch.distributed as dist
from shell import bash, fake_environment
from support import ROOT

from model.errors import UserError
from pretrain.machine import distributed

SPEC = importlib.util.spec_from_file_location("port", ROOT / "launch" / "port.py")
port = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(port)

PYTHON = """\
case "$*" in
*deepspeed.launcher*|*torch.distributed.run*) echo "$@" >> "{folder}/launched" ;;
*device_count*) echo 0 ;;
*) exec "{python}" "$@" ;;
esac
"""
"""A Python that launches nothing, and writes down what it would have."""


@pytest.fixture
def taken():
    """A port that somebody listens on who never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def launch(tmp_path):
    fake_environment(tmp_path / "env", PYTHON.format(folder=tmp_path, python=sys.executable))

    def run(script: str, **environment: str) -> tuple[int, str, str]:
        """Status, output, and the commands that were launched."""
        result = bash(str(ROOT / "launch" / script), "x.toml", VIRTUAL_ENV=str(tmp_path / "env"), **environment)
        launched = tmp_path / "launched"
        return result.returncode, result.stderr, launched.read_text() if launched.exists() else ""

    return run


@pytest.mark.parametrize(
    ("script", "environment", "says"),
    [
        ("deepspeed.sh", {"MASTER_PORT": "{taken}"}, "port {taken} is in use on this machine"),
        ("deepspeed.sh", {"MASTER_PORT": "8o"}, "MASTER_PORT: 8o is no port"),
        ("deepspeed.sh", {"HOSTFILE": "nowhere"}, "nowhere does not exist: give a file"),
        ("deepspeed.sh", {"NPROC": "0"}, "NPROC=0 is no whole number of at least 1."),
        ("torchrun.sh", {"NODES": "2"}, "NODES=2 machines need a place to meet: set RENDEZVOUS=host:port"),
        ("torchrun.sh", {"NODES": "two"}, "NODES=two is no whole number of at least 1."),
        ("torchrun.sh", {"RESTARTS": "-1"}, "RESTARTS=-1 is no whole number of at least 0."),
        ("torchrun.sh", {"NODES": "2", "RENDEZVOUS": "29500"}, "RENDEZVOUS=29500 is no host:port"),
        ("torchrun.sh", {"NODES": "2", "RENDEZVOUS": "a.invalid:1"}, "a.invalid is not known here"),
    ],
)
def test_what_cannot_be_launched(launch, taken, script, environment, says):
    status, said, launched = launch(script, **{key: value.format(taken=taken) for key, value in environment.items()})
    assert (status, launched) == (2, ""), said
    assert says.format(taken=taken) in said
    assert "Traceback" not in said


def test_a_rendezvous_tells_another_torchrun_from_a_stranger(launch, taken, monkeypatch):
    """The second torchrun of a machine joins the first one's store; it waits for no stranger."""
    monkeypatch.setattr(port, "JOIN_S", 2)
    with pytest.raises(SystemExit):
        port.meet(f"127.0.0.1:{taken}")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert launch("torchrun.sh", NODES="2", RENDEZVOUS=f"127.0.0.1:{store.port}")[0] == 0


def test_an_address_of_another_network_card_is_this_machine(monkeypatch, capsys, taken):
    """Which torchrun, knowing a machine by its name, does not see: nobody would serve the store."""
    monkeypatch.setattr(port, "addresses", lambda host: ["10.9.8.7"])
    monkeypatch.setattr(port, "is_here", lambda host: True)
    port.meet(f"10.9.8.7:{taken - 1}")
    assert capsys.readouterr().out == "is_host=1\n"
    monkeypatch.setattr(port, "is_here", lambda host: False)
    port.meet(f"10.9.8.7:{taken}")
    assert capsys.readouterr().out == ""


def test_a_port_that_is_taken_meanwhile(taken, monkeypatch):
    """Or one of a launcher that is not ours."""
    world = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken)}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^port {taken} is in use on this machine"):
        distributed._rendezvous()
