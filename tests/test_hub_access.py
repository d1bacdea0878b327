"""Where the hub cannot be asked, nothing waits for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dollartune import hub_access
from dollartune.backbones.loading import load_processor, read_config
from dollartune.errors import UserError
from dollartune.tasks.hub import HubSource, read_hub


@pytest.fixture(autouse=True)
def without_a_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A machine on which no name is found; gives the addresses that were asked for."""
    asked: list[Any] = []

    def refuse(address: Any, *args: Any, **more: Any) -> None:
        asked.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub_access, "getproxies", dict)
    hub_access.hub_answers.cache_clear()
    yield asked
    hub_access.hub_answers.cache_clear()


@pytest.mark.parametrize("name", ["someone/no-such-model", "gpt2-of-nobody-at-all"])
def test_a_model_that_is_not_here_is_told_at_once(name: str, without_a_network: list[Any], capfd: Any) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_config(name)
    # Our look for the hub, and its client's own for its list of agents, once a process; a file is tried for six times.
    assert len(without_a_network) <= 2
    assert "Retrying" not in "".join(capfd.readouterr())


def test_a_tokenizer_that_is_not_here_is_not_waited_for(without_a_network: list[Any]) -> None:
    from transformers import OPTConfig

    assert load_processor("someone/no-such-model", OPTConfig()) is None
    assert len(without_a_network) <= 2


def test_a_data_set_that_is_not_here_is_told_at_once(without_a_network: list[Any], capfd: Any) -> None:
    with pytest.raises(UserError, match="cannot load the data set someone/no-such-data"):
        read_hub(HubSource("someone/no-such-data"))
    assert len(without_a_network) <= 2
    assert "Retrying" not in "".join(capfd.readouterr())


def test_what_is_here_asks_nobody(tmp_path: Path, without_a_network: list[Any]) -> None:
    with hub_access.without_waiting(tmp_path):
        assert not constants.HF_HUB_OFFLINE
    assert without_a_network == []


def test_a_proxy_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access, "getproxies", lambda: {"https": "http://proxy:3128"})
    with hub_access.without_waiting("someone/model"):
        assert not constants.HF_HUB_OFFLINE


def test_the_next_one_may_ask_again() -> None:
    def break_down() -> None:
        with hub_access.without_waiting("someone/model"):
            raise ValueError(f"offline: {constants.HF_HUB_OFFLINE}")

    with pytest.raises(ValueError, match="offline: True"):
        break_down()
    assert not constants.HF_HUB_OFFLINE
