"""Engines that tell each other by files what they served."""

from __future__ import annotations

from pathlib import Path
from stat import S_IMODE

import pytest

from burnish.core.errors import OutputError, SettingsError
from burnish.serve.exchange import FORGOTTEN, FileExchange
from burnish.serve.policies.fleet import Fleet
from burnish.serve.policies.shares import FairShares
from burnish.serve.settings import PolicySettings
from burnish.serve.vllm.requests import read_plugin
from serve_runs import backlog, serve_together


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Engines:
    """Some that share a directory, and what they said."""

    def __init__(self, directory: Path, num: int) -> None:
        self.directory, self.clock, self.said = directory, Clock(), []
        self.trees = [FairShares() for _ in range(num)]
        self.ends = [self.joined() for _ in range(num)]

    def joined(self) -> FileExchange:
        return FileExchange(self.directory, Fleet(lambda path: 1.0, 1.0), self.said.append, self.clock)

    def tick(self) -> list[bool]:
        self.clock.now += 1
        return [end.tick(tree) for end, tree in zip(self.ends, self.trees, strict=True)]

    def share(self, place: int, tenant: str) -> float:
        node = self.trees[place].share((tenant,))
        return 2**40 / node.per_token


def test_engines_that_share_a_directory_share_their_tenants_fairly(tmp_path: Path):
    """As `test_who_waits_at_one_engine_has_the_share_of_one_who_waits_at_both`, by files that are an exchange old."""
    engines = Engines(tmp_path / "made", 2)
    jobs = [backlog({"a": 2000, "b": 2000}), backlog({"a": 2000})]
    for number in serve_together(engines.trees, jobs, None, every=5, rounds=1000):
        if not number % 5:
            assert engines.tick() == [True, True]
    served = {name: sum(tree.share((name,)).served for tree in engines.trees) for name in "ab"}
    assert served["a"] / served["b"] == pytest.approx(1, rel=0.03)
    assert not engines.said


def test_it_exchanges_once_in_a_stretch_of_time(tmp_path: Path):
    engines = Engines(tmp_path, 1)
    assert engines.tick() == [True]
    assert not engines.ends[0].tick(engines.trees[0])
    engines.clock.now += 0.4
    assert not engines.ends[0].tick(engines.trees[0])
    assert engines.tick() == [True]


def waiting(engines: Engines) -> None:
    for tree in engines.trees:
        for _, job, _ in backlog({"a": 3}):
            tree.on_submit(job, 0)


def test_who_says_nothing_more_is_left_out_and_his_weights_go_to_the_others(tmp_path: Path):
    engines = Engines(tmp_path, 2)
    waiting(engines)
    for _ in range(10):
        engines.tick()
    assert engines.share(0, "a") == pytest.approx(0.5, rel=0.05)
    for silent in range(1, 4):
        engines.clock.now += 1
        engines.ends[0].tick(engines.trees[0])
        assert engines.share(0, "a") == pytest.approx(0.5 if silent < 3 else 1, rel=0.05)
    engines.clock.now += FORGOTTEN
    engines.ends[0].tick(engines.trees[0])
    assert [file.stem for file in tmp_path.glob("*.json")] == [engines.ends[0].name]


def test_who_ends_takes_his_file_with_him_and_may_do_so_twice(tmp_path: Path):
    engines = Engines(tmp_path, 2)
    engines.ends[1].close()
    engines.ends[1].close()
    assert [file.stem for file in tmp_path.glob("*.json")] == [engines.ends[0].name]


def test_files_are_readable_by_their_owner_alone(tmp_path: Path):
    engines = Engines(tmp_path / "made", 1)
    waiting(engines)
    engines.tick()
    assert S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    assert [S_IMODE(file.stat().st_mode) for file in (tmp_path / "made").iterdir()] == [0o600]


@pytest.mark.parametrize("text", ["", "[]", '{"stretch": "x", "accounts": []}', '{"stretch": 1001, "accounts": [[1]]}'])
def test_what_is_no_account_is_said_once_and_left_out(tmp_path: Path, text: str):
    engines = Engines(tmp_path, 1)
    waiting(engines)
    (tmp_path / "other.json").write_text(text)
    engines.tick()
    engines.tick()
    assert engines.said == ["other.json in the directory of the exchange is no account of an engine"]
    assert engines.share(0, "a") == pytest.approx(1)


def test_a_directory_that_is_gone_does_not_end_the_engine(tmp_path: Path):
    engines = Engines(tmp_path / "made", 1)
    (tmp_path / "made" / f"{engines.ends[0].name}.json").unlink()
    (tmp_path / "made").rmdir()
    assert engines.tick() == engines.tick() == [True]
    assert len(engines.said) == 1
    assert "cannot be told the other engines" in engines.said[0]


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Engines(tmp_path / "file" / "made", 1)


def test_a_directory_without_an_exchange_in_the_policy_is_refused():
    with pytest.raises(SettingsError, match=r"additional_config.burnish.exchange: vtc exchanges nothing"):
        read_plugin({"burnish": {"policy": "vtc", "exchange": "somewhere"}})
    PolicySettings(order="shares", exchange_seconds=1).check_exchange("somewhere", where="--exchange")
