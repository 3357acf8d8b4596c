"""Room for workers, counted from the cluster's nodes."""

import os

import pytest
import ray

from mgray.cluster import Need, described, is_idle, need_of, room_of
from mgray.config import Run, ScaleSection
from mgray.errors import ConfigError
from mgray.trainer import LOCAL_RAY, ray_running


def node(name: str, cpus: float, gpus: float = 0.0, alive: bool = True) -> dict:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


NODES = [node("a", 4, 2), node("b", 3), node("c", 64, 8, alive=False)]


@pytest.mark.parametrize(
    ("need", "free", "held", "without", "expected"),
    [
        (Need(1.0), {"a": {"CPU": 4.0}, "b": {"CPU": 3.0}}, 0, (), 7),
        (Need(2.0), {"a": {"CPU": 4.0}, "b": {"CPU": 3.0}}, 0, (), 3),  # 2 and 1: a worker does not span nodes
        (Need(2.0), {"a": {"CPU": 3.0}, "b": {"CPU": 1.0}}, 0, (), 1),  # nor what is free of them
        (Need(1.0), {"a": {"CPU": 2.0}}, 3, (), 5),  # somebody else holds two
        (Need(1.0), {"a": {"CPU": 4.0}, "b": {"CPU": 3.0}, "c": {"CPU": 64.0}}, 0, ("a",), 3),
        (Need(1.0), {"a": {"CPU": 4.0}}, 3, ("a",), 3),  # what is free on a node about to go is no room
        (Need(1.0, 1.0), {"a": {"CPU": 4.0, "GPU": 2.0}, "b": {"CPU": 3.0}}, 0, (), 2),
        (Need(1.0, 1.0), {"a": {"CPU": 4.0}, "b": {"CPU": 3.0}}, 0, (), 0),
        (Need(1.0, 1.0), {"a": {"GPU": 2.0}, "b": {"CPU": 3.0}}, 0, (), 0),  # CPUs of one node, GPUs of another
        (Need(0.1), {"a": {"CPU": 0.3}}, 0, (), 3),
    ],
)
def test_room(need: Need, free: dict, held: int, without: tuple, expected: int) -> None:
    assert room_of(need, NODES, free, held, without) == expected


@pytest.mark.parametrize(
    ("need", "free", "expected"),
    [
        (Need(1.0), {"a": {"CPU": 4.0}, "b": {"CPU": 3.0}}, True),
        (Need(1.0), {"a": {"CPU": 4.0}, "b": {"CPU": 2.5}, "c": {"CPU": 64.0}}, False),  # the dead node is of no use
        (Need(1.0, 1.0), {"a": {"CPU": 4.0, "GPU": 1.0}, "b": {"CPU": 3.0}}, False),
        (Need(1.0), {"a": {"CPU": 4.0, "GPU": 1.0}, "b": {"CPU": 3.0}}, True),  # the GPU is of no use to us
        (Need(1.0), {}, False),
    ],
)
def test_nobody_holds_a_thing(need: Need, free: dict, expected: bool) -> None:
    assert is_idle(need, NODES, free) is expected


@pytest.mark.parametrize(
    ("gpu", "workers", "gpus", "grows", "expected"),
    [
        ("auto", 2, 0.0, False, 0.0),
        ("auto", 2, 2.0, False, 1.0),
        ("auto", "2:8", 4.0, False, 1.0),
        ("auto", 8, 4.0, True, 1.0),  # it waits for the rest rather than train on CPUs
        ("auto", 8, 0.0, True, 0.0),
        ("yes", 8, 0.0, True, 1.0),
        ("no", 2, 2.0, False, 0.0),
        ("auto", 8, 4.0, False, None),
        ("yes", 1, 0.0, False, None),
    ],
)
def test_what_workers_compute_on(
    gpu: str, workers: int | str, gpus: float, grows: bool, expected: float | None
) -> None:
    scale = ScaleSection(gpu=gpu, workers=workers)  # type: ignore[arg-type]
    if expected is None:
        with pytest.raises(ConfigError, match=rf"scale.workers = {workers}: .* the {gpus:g} GPUs .* --scale.gpu no"):
            need_of(scale, gpus, grows=grows)
        return
    need = need_of(scale, gpus, grows=grows)
    assert need.gpus == expected
    said = described(need, scale, gpus, grows=grows)
    assert said.startswith("trains on GPUs" if expected else "trains on CPUs")
    assert ("--scale.gpu yes" in said) == (gpu == "auto" and not expected and grows)


def test_workers_are_a_number_or_a_range() -> None:
    assert (ScaleSection(workers="2:16").min_workers, ScaleSection(workers="2:16").max_workers) == (2, 16)
    assert (ScaleSection(workers=3).min_workers, ScaleSection(workers="3").max_workers) == (3, 3)
    for wrong in (0, "0", "4:2", "2:", "a", "2:3:4", -1, ":3"):
        with pytest.raises(ConfigError, match=r"scale\.workers"):
            assert ScaleSection(workers=wrong).min_workers


@pytest.mark.parametrize(
    ("address", "environment", "expected"),
    [
        ("", "", "local"),
        ("auto", "", "auto"),
        ("", "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
    ],
)
def test_the_ray_that_a_run_trains_on(
    monkeypatch: pytest.MonkeyPatch, address: str, environment: str, expected: str
) -> None:
    """Never one that somebody else started on this machine, unless it is named."""
    given: dict[str, object] = {}
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", environment)
    with ray_running(Run(scale=ScaleSection(address=address))) as grows:
        assert grows == (expected != "local")
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        with ray_running(Run()) as still_grows:
            assert still_grows == grows
        assert given["address"] == expected
        assert ("num_cpus" in given) == (expected == "local")
        assert (LOCAL_RAY.items() <= os.environ.items()) == (expected == "local")
    with ray_running(Run()) as grows:
        assert grows, "nothing is known of a Ray that somebody else started"
    assert not LOCAL_RAY.keys() & os.environ.keys()
