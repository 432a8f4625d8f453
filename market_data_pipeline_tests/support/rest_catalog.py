"""A REST catalog of Iceberg on loopback: the part of its protocol that pyiceberg and engines use, over SQLite."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchNamespaceError, NoSuchTableError
from pyiceberg.table import CommitTableRequest, Table

_STATUS = {CommitFailedException: 409, NoSuchNamespaceError: 404, NoSuchTableError: 404}


@contextmanager
def serve_catalog(folder: Path) -> Iterator[str]:
    """Serve a catalog whose names are in a folder, and yield its address."""
    catalog = SqlCatalog("rest", uri=f"sqlite:///{folder}/rest.db", check_same_thread="false")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *given: Any) -> None:
            pass

        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            parts = self.path.partition("?")[0].strip("/").split("/")[1:]
            status, answer = 200, None
            try:
                with lock:
                    answer = _result(catalog, self.command, parts, body)
            except tuple(_STATUS) as error:
                status = _STATUS[type(error)]
                kind = type(error).__name__.replace("Error", "Exception")
                answer = {"error": {"message": str(error), "type": kind, "code": status}}
            data = b"" if answer is None or self.command == "HEAD" else json.dumps(answer).encode()
            self.send_response(204 if answer is None else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 - names of http.server

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
            catalog.close()


def _result(catalog: SqlCatalog, method: str, parts: list[str], body: dict[str, Any]) -> dict[str, Any] | None:
    match method, parts:
        case _, ["config"]:
            return {"defaults": {}, "overrides": {}}
        case "POST", ["namespaces"]:
            catalog.create_namespace_if_not_exists(tuple(body["namespace"]))
            return {"namespace": body["namespace"], "properties": {}}
        case "GET", ["namespaces"]:
            return {"namespaces": [list(one) for one in catalog.list_namespaces()]}
        case (("GET" | "HEAD"), ["namespaces", space]):
            return {"namespace": [space], "properties": catalog.load_namespace_properties(space)}
        case "GET", ["namespaces", space, "tables"]:
            named = catalog.list_tables(space)
            return {"identifiers": [{"namespace": [one[0]], "name": one[1]} for one in named]}
        case "POST", ["namespaces", space, "register"]:
            return _loaded(catalog.register_table((space, body["name"]), body["metadata-location"]))
        case (("GET" | "HEAD"), ["namespaces", space, "tables", name]):
            return _loaded(catalog.load_table((space, name)))
        case "POST", ["namespaces", space, "tables", name]:
            request = CommitTableRequest.model_validate({"identifier": {"namespace": [space], "name": name}, **body})
            catalog.commit_table(catalog.load_table((space, name)), request.requirements, request.updates)
            return _loaded(catalog.load_table((space, name)))
    raise NotImplementedError(method, parts)


def _loaded(table: Table) -> dict[str, Any]:
    return {
        "metadata-location": table.metadata_location,
        "metadata": json.loads(table.metadata.model_dump_json()),
        "config": {},
    }
