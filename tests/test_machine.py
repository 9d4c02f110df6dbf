"""What a machine says about itself, from files as Linux writes them."""

import pytest

from edge_atp import machine


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Point the module at files of another machine; ``write(name, text)`` makes one."""
    names = {"cpuinfo": "_CPUINFO", "meminfo": "_MEMINFO", "model": "_BOARD", "gpus": "_GPUS"}
    for name, constant in names.items():
        monkeypatch.setattr(machine, constant, tmp_path / name)
    for cached in (machine.cpu_name, machine.gpu_name):
        cached.cache_clear()

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield write
    for cached in (machine.cpu_name, machine.gpu_name):
        cached.cache_clear()


def test_a_pc_is_named_by_its_processor_and_cores(files, monkeypatch):
    files("cpuinfo", "processor\t: 0\nmodel name\t: Some CPU 9000\n")
    monkeypatch.setattr(machine, "_cores", lambda: 4)
    assert machine.device_name("ort-cpu") == "Some CPU 9000, 4 cores"


def test_a_gpu_backend_is_named_by_the_gpu(files):
    files("cpuinfo", "model name\t: Some CPU\n")
    files("gpus/0000:01:00.0/information", "Model: \t\t NVIDIA Something\nIRQ: 1\n")
    assert machine.device_name("ort-cuda") == machine.device_name("trt") == "NVIDIA Something"
    assert machine.device_name("ort-cpu").startswith("Some CPU")


def test_a_jetson_is_named_by_its_board_whatever_the_backend(files):
    files("model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    for backend in ("ort-cpu", "trt"):
        assert machine.device_name(backend) == "NVIDIA Jetson Orin Nano Developer Kit"


def test_what_cannot_be_told_is_empty_and_raises_nothing(files, monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (_ for _ in ()).throw(OSError()))
    read = machine.read_machine()
    assert (read.board, read.gpu, read.memory_bytes, read.load) == ("", "", None, None)
    assert read.is_busy is False
    assert read.cores >= 1


@pytest.mark.parametrize(("load", "busy"), [(0.1, False), (0.5, False), (0.7, True), (9.0, True)])
def test_a_load_of_more_than_a_third_of_the_cores_is_busy(load, busy):
    read = machine.Machine("cpu", 2, None, "", "", "Linux", load)
    assert read.is_busy is busy
    assert read.to_json()["is_busy"] is busy


def test_memory_is_read_in_bytes(files):
    files("meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n")
    assert machine.read_machine().memory_bytes == 16384 * 1024
