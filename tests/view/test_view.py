"""The page over a study: what its server says, what it refuses, and how it looks in a real browser."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fabricate import METHODS, MadeStudy, make_study

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.evaluate.evaluation import Prediction
from dollartune.study.live_file import LiveFile, ask_to_stop, read_live, stop_request
from dollartune.trials.store import Store
from dollartune.view.server import TOKEN, ViewServer
from dollartune.view.state import predictions_page, study_state

HOSTILE = '<script>document.title="broken in"</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("view") / "study"
    made = MadeStudy(
        methods=METHODS[:4], scales=(100,), rows=60, hostile=HOSTILE, failures=(("vera", "error", HOSTILE),)
    )
    make_study(root, made)
    return Store(root)


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[ViewServer]:
    running = ViewServer(store)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def ask(server: ViewServer, path: str, post: bool = False, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        server.address.rstrip("/") + path, method="POST" if post else "GET", headers=headers
    )
    try:
        with urllib.request.urlopen(request) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if answer.headers[
                "Content-Type"
            ] == "application/json" else content
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_state_says_what_there_is(server: ViewServer, store: Store) -> None:
    _, state = ask(server, "/state")
    (board,) = state["boards"]
    assert board["task"] == "ag_news"
    assert len([one for one in board["trials"] if one["status"] == "done"]) == state["status"]["done"]
    assert any(one["error"] == HOSTILE for one in board["trials"])


def test_first_charts_are_there_without_pytorch_or_altair() -> None:
    """Imports are counted, not seconds."""
    import subprocess

    script = (
        "import sys\nimport dollartune.view.server\nfrom dollartune.view.quick_charts import money_spec\n"
        "assert not {'torch', 'altair', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["money", "curves", "pareto", "confusion", "calibration"])
def test_charts_are_specifications_with_their_data(server: ViewServer, name: str) -> None:
    _, state = ask(server, "/state")
    board = state["boards"][0]
    trial = next(one["trial"] for one in board["trials"] if one["label"] == "full" and one["status"] == "done")
    status, spec = ask(server, f"/chart/{name}?board={quote(board['key'])}&trial={trial}")
    assert status == 200, spec
    assert "layer" in spec
    json.dumps(spec, allow_nan=False)
    if name == "confusion":
        assert {one["label"] for one in spec["usermeta"]["classes"]} == {"world", "sports", "business", "sci/tech"}


def test_the_best_so_far_never_falls_and_money_never_goes_back(server: ViewServer) -> None:
    _, state = ask(server, "/state")
    _, spec = ask(server, f"/chart/money?board={quote(state['boards'][0]['key'])}")
    points = spec["data"]["values"]
    assert [p["seconds"] for p in points] == sorted(p["seconds"] for p in points)
    assert [p["best"] for p in points] == sorted(p["best"] for p in points)
    assert all(p["best"] >= p["score"] for p in points)


def test_a_try_and_the_final_trial_of_one_setting_and_seed_are_two_curves(server: ViewServer) -> None:
    _, state = ask(server, "/state")
    _, spec = ask(server, f"/chart/curves?board={quote(state['boards'][0]['key'])}")
    assert {layer["encoding"]["detail"]["field"] for layer in spec["layer"]} == {"trial"}
    points = spec["data"]["values"]
    assert len({point["trial"] for point in points}) >= len({(point["label"], point["seed"]) for point in points}) > 1


def test_predictions_show_where_two_trials_differ(server: ViewServer, store: Store) -> None:
    _, state = ask(server, "/state")
    done = [one["trial"] for one in state["boards"][0]["trials"] if one["status"] == "done"]
    first, second = done[0], done[-1]
    rows, other = ({row["example_id"]: row["predicted"] for row in store.predictions(t)} for t in (first, second))
    _, found = ask(server, f"/predictions?trial={first}&other={second}&only=differ")
    assert found["differ"] == sum(rows[name] != other[name] for name in rows)
    assert all(row["predicted"] != row["other"] for row in found["rows"])
    _, wrong = ask(server, f"/predictions?trial={first}&only=wrong&page=0")
    assert not any(row["correct"] for row in wrong["rows"])


def test_what_is_not_there_is_said_in_a_sentence(server: ViewServer) -> None:
    for path in (
        "/chart/pie",
        "/predictions?trial=nothing",
        "/nowhere",
        "/picture?task=x&id=y",
    ):
        status, found = ask(server, path)
        assert status == 404
        assert found["error"]
    assert ask(server, "/chart/money?board=x") == (200, {"nothing": "there is nothing to draw here yet."})


def test_other_pages_can_neither_read_nor_change(server: ViewServer) -> None:
    assert ask(server, "/state", Host="evil.example:80")[0] == 404
    assert ask(server, "/stop?trial=x", post=True)[0] == 403
    assert ask(server, "/stop?trial=x", post=True, **{TOKEN: "guess"})[0] == 403
    assert ask(server, "/stop?trial=x", post=True, **{TOKEN: "é"})[0] == 403
    status, found = ask(server, "/stop?trial=x", post=True, **{TOKEN: server.token})
    assert (status, found["error"]) == (404, "this trial is not in training.")
    assert ask(server, "/extend?trial=x&steps=1", post=True)[0] == 403
    status, found = ask(server, "/extend?trial=x&steps=1", post=True, **{TOKEN: server.token})
    assert (status, "there is no trial" in found["error"]) == (404, True)


def test_a_page_that_is_closed_while_it_is_answered_is_no_fault(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ViewServer(store)
    with socket.create_connection(server.server_address[:2]) as page:
        page.sendall(b"GET /state HTTP/1.1\r\n")
        # with a reset, as a browser's process that ends
        page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.daemon_threads = False  # so that closing waits for the answer
    server.handle_request()
    server.server_close()
    assert "Traceback" not in capsys.readouterr().err
    try:
        raise ValueError("a fault")
    except ValueError:
        server.handle_error(None, ("127.0.0.1", 1))
    assert "a fault" in capsys.readouterr().err


def test_a_trial_in_training_is_shown_and_ends_when_asked(study_of: Any) -> None:
    """The request is there before the first validation, so that no clock is needed."""
    from dollartune.study.api import Study

    study = Study(study_of(methods=["bitfit"], training={"epochs": 8, "batch_size": 8}))
    (trial,) = study.trials()
    ask_to_stop(study.store.root, trial.identifier)
    study.run(display=Display())
    (record,) = study.store.records()
    assert record.status == "done"
    assert record.stopped == "pruned"
    assert record.training is not None
    assert record.training.steps < 16
    assert not stop_request(study.store.root, trial.identifier).exists()
    live = read_live(study.store.root)
    assert live is not None
    assert not live["running"]


def test_a_finished_trial_is_trained_further(study_of: Any) -> None:
    from dollartune.study.api import Study
    from dollartune.view.extend_process import ExtendProcess
    from dollartune.view.pages import StudyPage

    study = Study(study_of(methods=["bitfit", "zero_shot"]))
    study.run(display=Display())
    page = StudyPage(study.store)
    (board,) = page.state()["boards"]
    steps = {one["label"]: one["steps"] for one in board["trials"]}
    assert steps == {"bitfit": 2, "zero_shot": None}
    first = next(one["trial"] for one in board["trials"] if one["label"] == "bitfit")
    with pytest.raises(UserError, match="one step at least"):
        page.extend(first, 0)
    with pytest.raises(UserError, match="was not kept"):
        page.extend(next(one["trial"] for one in board["trials"] if one["label"] == "zero_shot"), 1)
    # the page's own process, as it is; it is waited for, and not timed
    asked = ExtendProcess(study.store.root, first, 1)
    assert asked.state()["words"].startswith("It is being")
    asked._process.wait()
    assert asked.state() == {
        "trial": first, "running": False, "words": "It has been trained further; the new trial stands beside it.",
    }  # fmt: skip
    assert {one["label"] for one in page.state()["boards"][0]["trials"]} == {"bitfit", "bitfit, +1 steps", "zero_shot"}


def test_why_a_training_further_failed_is_said_in_a_line() -> None:
    from dollartune.view.extend_process import _reason

    assert (
        _reason("note: x\nerror: there is no trial 'f'.\ndollartune results STUDY --trials\n")
        == "there is no trial 'f'."
    )
    assert _reason('Traceback ...\n  File "x"\nMemoryError: no memory\n') == "MemoryError: no memory"
    assert _reason("") == "it ended without a word."


def test_while_the_study_runs_its_own_process_is_asked(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dollartune.study.api import Study
    from dollartune.study.live_file import asked_extensions
    from dollartune.view.pages import StudyPage

    study = Study(study_of(methods=["bitfit"]))
    study.run(display=Display())
    (record,) = study.store.records()
    monkeypatch.setattr("dollartune.view.pages.runs_now", lambda root: True)
    assert "once the study's own trials are done" in StudyPage(study.store).extend(record.id, 3)["words"]
    assert list(asked_extensions(study.store.root)) == [(record.id, 3)]
    assert list(asked_extensions(study.store.root)) == []


def test_what_runs_is_written_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from dollartune.study import live_file

    monkeypatch.setattr(live_file, "time", SimpleNamespace(time=lambda: 1234.5, monotonic=lambda: 100.0))
    trial = SimpleNamespace(identifier="abc", task="t", scale=10, label="lora", seed=0)
    state = SimpleNamespace(name="abc", done=False, epoch=0.5, total_steps=10, progress=SimpleNamespace(step=5))
    shown = LiveFile(Display(), tmp_path)
    shown.validated(trial, SimpleNamespace(step=5, epoch=0.5, seconds=1.0, validation_loss=0.7))  # type: ignore[arg-type]
    # a loss that diverged would be no JSON, and the page would get no answer at all
    shown.validated(trial, SimpleNamespace(step=6, epoch=0.6, seconds=1.2, validation_loss=float("nan")))  # type: ignore[arg-type]
    shown.training([trial], [state])  # type: ignore[list-item]
    live = read_live(tmp_path)
    assert live is not None
    (running,) = live["trials"]
    assert (running["label"], running["step"], running["steps"]) == ("lora", 5, 10)
    assert [point["loss"] for point in running["curve"]] == [0.7]
    assert live["at"] == 1234.5


def _open(browser: Any, server: ViewServer, width: int, scheme: str) -> tuple[Any, list[str]]:
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.set_default_timeout(180_000)
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("request", lambda r: trouble.append(r.url) if not r.url.startswith((server.address, "data:")) else None)
    page.goto(server.address)
    page.wait_for_selector("html[data-ready=yes]")
    return page, trouble


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_the_page_is_drawn_and_nothing_hostile_comes_alive(
    browser: Any, server: ViewServer, width: int, scheme: str
) -> None:
    page, trouble = _open(browser, server, width, scheme)
    assert trouble == []
    assert page.locator(".plot[data-drawn=yes] svg").count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself must not scroll sideways"
    assert "DollarTune" in page.title()
    page.select_option("#other", index=2)
    page.select_option("#only", "differ")
    page.wait_for_selector("#rows-summary:has-text('differ on')")  # no string is evaluated: the policy forbids it
    assert page.locator("#rows tbody tr").count() > 0
    assert trouble == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page(browser: Any, server: ViewServer, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page, _ = _open(browser, server, 1400, scheme)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_page_shows_numbers_as_the_report_does(tmp_path: Path) -> None:
    """One wrong row in thousands is no perfect score, and a probability of 0.996 is not certainty."""
    results = make_study(tmp_path / "study", MadeStudy(methods=METHODS[1:2], seeds=1, rows=8))
    (record,) = results.records
    test = record.test.model_copy(update={"score": 0.9996})
    cost = record.cost.model_copy(update={"seconds": 125.0, "dollars": 0.00001})
    rows = [Prediction("test/0", "world", "world", True, {"world": 0.996, "sports": 0.004})]
    results.store.write(record.id, record.with_facts(test=test, cost=cost), rows)
    (board,) = study_state(results.store)["boards"]
    shown = board["trials"][0]["shown"]
    assert (shown["test"], shown["seconds"], shown["dollars"]) == ("0.9996", "2 min 05 s", "< $0.0001")
    page = predictions_page(results.store, record.id, None, "all", 0, {})
    assert page["rows"][0]["sure"] == "99.6 %"
    script = (Path(__file__).parents[2] / "src/dollartune/view/view.js").read_text()
    assert not re.search(r"toFixed|toPrecision|Math\.round", script), "the server writes them"
