"""The local server of the page: this machine alone, no login, nothing from elsewhere.

GET /               the page                              GET /chart/NAME     a Vega-Lite specification
GET /state          how far the study is                  GET /predictions    rows with what was predicted
GET /libraries.js   Vega, from the cache                  GET /picture        an image of the test set
POST /stop          ask for the end of a trial in training
POST /extend        train a finished trial further
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from dollartune.errors import UserError
from dollartune.view.pages import StudyPage

if TYPE_CHECKING:
    from dollartune.trials.store import Store

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What the page may load: its own files. A model's output that looked like a script could do nothing even unescaped."""
TOKEN = "X-Token"
"""Header without which nothing is changed: another page that the browser has open cannot send it."""


class ViewServer(ThreadingHTTPServer):
    """Serves one study.

    Args:
        store: the study.
        port: to listen at; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    # Ctrl-C ends the server though a chart is still being drawn.
    daemon_threads = True

    def __init__(self, store: Store, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.page = StudyPage(store)
        self.token = secrets.token_urlsafe(16)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that is closed while it is answered is no fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    @property
    def hosts(self) -> set[str]:
        """What a browser on this machine calls it. Any other name means that somebody's domain was pointed here."""
        return {f"{name}:{self.server_address[1]}" for name in ("127.0.0.1", "localhost")}


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    # Keeps the connection open between the questions of each second.
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, query = self._asked()
        page = self.server.page
        if path == "/":
            self._send(_page(self.server.token), "text/html; charset=utf-8")
        elif path in ("/view.js", "/view.css"):
            kind = "text/javascript" if path.endswith("js") else "text/css"
            self._send(files("dollartune.view").joinpath(path[1:]).read_bytes(), f"{kind}; charset=utf-8")
        elif path == "/report.css":
            self._send(files("dollartune.report").joinpath("page.css").read_bytes(), "text/css; charset=utf-8")
        elif path == "/libraries.js":
            self._answer(lambda: (page.libraries().encode(), "text/javascript; charset=utf-8"))
        elif path == "/picture":
            self._answer(lambda: (page.picture(query.get("task", ""), query.get("id", "")), "image/png"))
        elif path == "/state":
            self._json(page.state)
        elif path == "/predictions":
            self._json(lambda: page.predictions(query))
        elif path.startswith("/chart/"):
            self._json(lambda: page.chart(path.removeprefix("/chart/"), query))
        else:
            self._fail(HTTPStatus.NOT_FOUND, "there is nothing here.")

    def do_POST(self) -> None:
        path, query = self._asked()
        length = int(self.headers.get("Content-Length") or 0)
        # Read and thrown away, or the next request on this connection would begin inside it; nothing that we ask for is
        # longer.
        self.rfile.read(min(length, 10_000))
        # In constant time: a comparison that ends at the first difference tells how much was right.
        if not secrets.compare_digest(self.headers.get(TOKEN, "").encode(), self.server.token.encode()):
            self._fail(HTTPStatus.FORBIDDEN, "the token is missing.")
        elif path == "/stop":
            self._json(lambda: self.server.page.stop(query.get("trial", "")))
        elif path == "/extend":
            self._json(lambda: self.server.page.extend(query.get("trial", ""), int(query.get("steps") or 0)))
        else:
            self._fail(HTTPStatus.NOT_FOUND, "there is nothing here.")

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        # Against DNS rebinding: a page elsewhere whose name was turned to this machine would else read the study.
        if self.headers.get("Host") not in self.server.hosts:
            return "/not-here", {}
        return parts.path, {key: values[-1] for key, values in parse_qs(parts.query).items()}

    def _json(self, make: Callable[[], Mapping[str, Any]]) -> None:
        # A NaN would be no JSON, and the browser would drop the whole answer.
        self._answer(lambda: (json.dumps(make(), allow_nan=False).encode(), "application/json"))

    def _answer(self, make: Callable[[], tuple[bytes, str]]) -> None:
        try:
            content, kind = make()
        except UserError as error:
            self._fail(HTTPStatus.NOT_FOUND, error.message)
        except (OSError, ValueError, KeyError) as error:  # a file that is being written, a number that is none
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._send(content, kind)

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self._send(json.dumps({"error": message}).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        # What a model wrote is shown as what we say it is.
        self.send_header("X-Content-Type-Options", "nosniff")
        # Every answer is of this moment.
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page that asks each second would fill the terminal."""


def _page(token: str) -> bytes:
    text = files("dollartune.view").joinpath("view.html").read_text("utf8")
    return text.replace("TOKEN", token).encode()
