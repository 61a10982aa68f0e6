"""What a live scheduler counts, in the text format of Prometheus, and the small server that shows it.

Names of tenants come from clients, so only the first `MOST_LABELS` have a line of their own; all others are `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from burnish.core.errors import EngineError

MOST_LABELS = 50
Values = Mapping[str, float | Mapping[str, float]]
"""By name of the metric; one with a label by the label's value."""


class TenantSums:
    """Sums of each tenant, of a bounded number of names."""

    def __init__(self, most: int = MOST_LABELS) -> None:
        self._most = most
        self.sums: dict[str, dict[str, float]] = {}

    def add(self, name: str, **amounts: float) -> None:
        name = name or "default"
        if name not in self.sums and len(self.sums) >= self._most:
            name = "other"
        row = self.sums.setdefault(name, {})
        for what, amount in amounts.items():
            row[what] = row.get(what, 0) + amount

    def columns(self) -> dict[str, dict[str, float]]:
        """By what was added, then by name."""
        found: dict[str, dict[str, float]] = {}
        for name, row in self.sums.items():
            for what, amount in row.items():
                found.setdefault(what, {})[name] = amount
        return found


def exposition(values: Values) -> str:
    """`burnish_NAME{label="..."} value` lines; a metric is `NAME` or `NAME:label`, and a counter ends in _total."""
    lines = []
    for name, value in values.items():
        metric, _, label = name.partition(":")
        lines.append(f"# TYPE burnish_{metric} {'counter' if metric.endswith('_total') else 'gauge'}")
        if isinstance(value, Mapping):
            lines += [f'burnish_{metric}{{{label}="{_escaped(one)}"}} {amount:.10g}' for one, amount in value.items()]
        else:
            lines.append(f"burnish_{metric} {value:.10g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def show(values: Callable[[], Values], port: int) -> int:
    """Serves the metrics at the loopback, from a thread that ends with the process; returns the port, 0 takes one.

    Raises:
        EngineError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exposition(values()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass  # the log is the server's

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise EngineError(f"cannot be listened at ({error.strerror})", where=f"port {port}") from None
    server.daemon_threads = True
    Thread(target=server.serve_forever, name="burnish-metrics", daemon=True).start()
    return server.server_address[1]
