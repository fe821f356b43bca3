"""Scenarios: what is read, and how each mistake is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from msgspec import structs

from tools.lab.scenario import (
    Device,
    Kill,
    Network,
    Options,
    Request,
    Scenario,
    ScenarioError,
    SetDelay,
    SetMedium,
    SetRate,
    load_scenario,
    parse_scenario,
    rates_of,
)

SHIPPED = sorted((Path(__file__).parents[3] / "tools/lab/scenarios").glob("*.toml"))
WHOLE = """
seed = 7
offer = ["tiny-gpt2"]
[network]
medium_mbps = 20
delay_ms = 5
loss_percent = 0.5
[device.left]
cpu = 0.5
rate_mbps = 10
down_mbps = 20
options = ["--log-level", "info"]
[device.right]
delay_ms = 0
start = false
[[request]]
from = "left"
model = "tiny-gpt2"
text = "ROMEO:"
repeat = 3
at_s = 1
options = { use = "all", max_new_tokens = 8 }
[[event]]
at_s = 2
action = "rate"
device = "left"
up_mbps = 2
[[event]]
at_s = 1.5
jitter_s = 0.5
action = "kill"
device = "right"
[[event]]
at_s = 3
action = "medium"
mbps = "unlimited"
"""
A = "[device.a]\n"
ASK = '[[request]]\nfrom = "a"\nmodel = "m"\n'


def parse(text: str) -> Scenario:
    return parse_scenario(text, Path("folder/house.toml"))


def test_a_whole_scenario() -> None:
    found = parse(WHOLE)
    left, right = found.devices["left"], found.devices["right"]
    assert (found.name, found.seed, found.offer) == ("house", 7, ("tiny-gpt2",))
    assert found.network == Network(medium_mbps=20.0, delay_ms=5.0, loss_percent=0.5)
    assert (left.cpu, rates_of(left), rates_of(right)) == (0.5, (10.0, 20.0), (None, None))
    assert (left.options, left.start, right.start) == (("--log-level", "info"), True, False)
    (request,) = found.requests
    assert request.arguments() == {"use": "all", "max_new_tokens": 8}
    assert (request.device, request.repeat, request.at_s) == ("left", 3, 1.0)
    assert found.events == (
        SetRate(device="left", at_s=2.0, up_mbps=2.0),
        Kill(device="right", at_s=1.5, jitter_s=0.5),
        SetMedium(at_s=3.0, mbps="unlimited"),
    )


def test_a_device_overrides_the_network() -> None:
    found = parse(WHOLE)
    assert (found.delay_of("left"), found.delay_of("right")) == ((5.0, 0.0), (0.0, 0.0))
    assert found.delayed() == ["left"]
    later = structs.replace(found, events=(SetDelay(device="right", at_s=1.0, delay_ms=3.0),))
    assert later.delayed() == ["left", "right"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_scenarios_are_valid(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert scenario.requests


def test_there_are_the_scenarios_that_the_document_names() -> None:
    names = "two-peers-10mbps four-boards-10mbps delay-20ms lossy changing-rate killed-peer"
    assert {path.stem for path in SHIPPED} == set(names.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x =", "no TOML"),
        ("", "missing required field `device`"),
        ("[device]", "device"),
        ("device = 3", "device: Expected `object`, got `int`"),
        ("[device.A]", "'A' is no name"),
        ("[device.switch]", "'switch' is no name"),
        (A + 'cpu = "half"', r"device\.a\.cpu: Expected `float"),
        (A + "cpu = 0", r"device\.a\.cpu: Expected `float` >= 0.05"),
        (A + "cpus = 1", r"device\.a: Object contains unknown field `cpus`; did you mean cpu\?"),
        (A + "delay_mss = 1", r"unknown field `delay_mss`; did you mean delay_ms\?"),
        (A + 'rate_mbps = "fast"', r'device\.a\.rate_mbps: .*number of Mbit/s, or "unlimited"'),
        (A + "rate_mbps = -1", r"device\.a\.rate_mbps: Expected `float` >= 0.01, not -1"),
        (A + "rate_mbps = nan", r"device\.a\.rate_mbps"),
        (A + "rate_mbps = inf", r"device\.a\.rate_mbps"),
        (A + "delay_ms = -1", r"device\.a\.delay_ms"),
        (A + "threads = 0", r"device\.a\.threads: Expected `int` >= 1"),
        ("seed = -1\n" + A, "seed: Expected `int` >= 0"),
        (A + "threads = 1.5", r"device\.a\.threads: Expected `int`, got `float`"),
        (A + "[network]\nloss_percent = 101", r"network\.loss_percent: .* <= 100"),
        (A + "[network]\nloss = 1", "network: Object contains unknown field `loss`"),
        (A + ASK, r"request\[0\]: needs a text or an image"),
        (A + ASK + 'text = "t"\nimage = "i"', r"request\[0\]: needs a text or an image"),
        (A + ASK + 'text = "t"\ntokens = [1]', r"request\[0\]: needs a text or an image"),
        (A + ASK + 'tokens = [1]\ntask = "embed"', r"request\[0\].tokens: only generate"),
        (A + ASK + 'image = "i"', r"request\[0\]\.image: only classify"),
        (A + ASK + 'task = "classify"\nimage = "nowhere.jpg"', r"request\[0\]\.image: there is no"),
        (A + ASK + 'text = "t"\ntask = "fit"', r"request\[0\]\.task: .*there are generate"),
        (A + ASK + 'text = "t"\noptions.top = 3', r"request\[0\]\.options\.top: generate has no"),
        (A + ASK + 'text = "t"\noptions.x = 3', r"request\[0\]\.options: .* unknown field `x`"),
        (A + ASK + 'text = "t"\noptions.use = "some"', r"options\.use: .*there are auto, all"),
        (A + ASK + 'text = "t"\nrepeat = 0', r"request\[0\]\.repeat: Expected `int` >= 1"),
        (A + ASK + 'text = ""', r"request\[0\]\.text: Expected `str` of length >= 1"),
        (A + ASK + "tokens = []", r"request\[0\]\.tokens: Expected `array` of length >= 1"),
        (A + ASK + "tokens = [-1]", r"request\[0\]\.tokens\[0\]: Expected `int` >= 0, not -1"),
        (A + ASK + 'text = "t"\noptions.max_new_tokens = -5', r"max_new_tokens: .* >= 1, not -5"),
        (A + ASK + 'text = "t"\noptions.temperature = nan', r"options\.temperature"),
        (A + ASK + 'text = "t"\noptions.max_peers = -1', r"options\.max_peers: .* not -1"),
        (A + ASK + 'text = "t"\noptions.max_loss = -1', r"options\.max_loss: .* not -1"),
        (A + '[[request]]\nfrom = "b"\nmodel = "m"\ntext = "t"', "no device 'b'; there are a"),
        (A + '[[event]]\nat_s = 1\naction = "burn"', r"event\[0\]\.action: .*there are rate"),
        (A + "[[event]]\nat_s = 1", r"event\[0\]"),
        (A + '[[event]]\nat_s = 1\naction = "loss"\ndevice = "a"', "required field `percent`"),
        (A + '[[event]]\nat_s = 1\naction = "kill"\ndevice = "b"', r"event\[0\].device: no device"),
        (A + '[[event]]\nat_s = 1\naction = "medium"\nmbps = 1', "there is no medium"),
        (
            A + '[[event]]\nat_s = 1\njitter_s = 2\naction = "kill"\ndevice = "a"',
            r"event\[0\]\.jitter_s: larger than at_s",
        ),
        ('models = "nowhere"\n' + A, "models: there is no"),
        ('models = "/etc/hosts"\n' + A, "models: /etc/hosts is no folder"),
        ('offer = ["tiny-gpt2", "gpt-9"]\n' + A, r"offer\[1\]: there is no .*/models/gpt-9"),
    ],
)
def test_each_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        parse(text)
    assert str(caught.value).startswith("folder/house.toml: ")


def as_yaml(text: str, suffix: str = ".yaml") -> Scenario:
    return parse_scenario(text, Path(f"folder/house{suffix}"))


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".YAML"])
def test_yaml_says_the_same(suffix: str) -> None:
    assert as_yaml(yaml.safe_dump(tomllib.loads(WHOLE)), suffix) == parse(WHOLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no table of keys"),
        ("- a\n- b", "no table of keys"),
        ("device: [", "no YAML: while parsing"),
        ("device:\n  a: {cpu: 1, cpu: 2}", "a key twice.*line 2"),
        ("device:\n  a: {cpus: 1}", r"device\.a: Object contains unknown field `cpus`"),
        ("device:\n  a: {rate_mbps: -1}", r"device\.a\.rate_mbps: .* >= 0.01, not -1"),
        ("!!python/object/apply:os.system [id]", "no YAML: could not determine a constructor"),
    ],
)
def test_each_mistake_in_yaml_is_named(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        as_yaml(text)
    assert str(caught.value).startswith("folder/house.yaml: ")


def test_what_is_no_toml_may_be_yaml_of_another_name() -> None:
    with pytest.raises(ScenarioError, match=r"or YAML in files that end in \.yaml"):
        parse("device: {a: {}}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"none\.toml cannot be read"):
        load_scenario(tmp_path / "none.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    ask = ASK + 'task = "classify"\nimage = "photo.jpg"'
    (tmp_path / "house.toml").write_text(f'models = "models"\n{A}{ask}')
    found = load_scenario(tmp_path / "house.toml")
    assert found.models == str(tmp_path / "models")
    assert found.requests[0].image == str(tmp_path / "photo.jpg")


class TestSchedule:
    EVENTS = tuple(Kill(device="a", at_s=at, jitter_s=1.0) for at in (5.0, 3.0, 4.0))

    def scenario(self, seed: int) -> Scenario:
        return Scenario(devices={"a": Device()}, events=self.EVENTS, seed=seed)

    def test_it_is_in_the_order_of_time(self) -> None:
        times = [at for at, _ in self.scenario(0).schedule()]
        assert times == sorted(times)

    def test_the_same_seed_gives_the_same_times(self) -> None:
        assert self.scenario(1).schedule() == self.scenario(1).schedule()
        assert self.scenario(1).schedule() != self.scenario(2).schedule()

    @pytest.mark.parametrize("seed", range(20))
    def test_jitter_stays_within_its_bounds(self, seed: int) -> None:
        for at, event in self.scenario(seed).schedule():
            assert abs(at - event.at_s) <= event.jitter_s

    def test_without_jitter_times_are_exact(self) -> None:
        events = (Kill(device="a", at_s=2.0), Kill(device="a", at_s=1.0))
        found = Scenario(devices={"a": Device()}, events=events).schedule()
        assert [at for at, _ in found] == [1.0, 2.0]


def test_mistakes_in_python_are_named_too() -> None:
    ask = Request(device="a", model="m", task="embed", text="t", options=Options(top_k=3))
    with pytest.raises(ValueError, match=r"request\[0\]\.options\.top_k: embed has no such"):
        Scenario(devices={"a": Device()}, requests=(ask,))
