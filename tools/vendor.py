"""Fetch the scripts of others that the page of the server carries: ``python -m tools.vendor``. Needs the network.

``vendor.json`` names the version, the licence and the SHA-256 of each file. A package is refused if its hash at npm
differs, and a file if its own does. ``--check`` only compares the stored files, without network.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

FOLDER = Path(__file__).parents[1] / "market_data_pipeline" / "server" / "static" / "vendor"


def fetch(package: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a package by their names here."""
    with urlopen(package["url"], timeout=60) as answer:  # noqa: S310 - the address is in vendor.json
        archive = answer.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != package["integrity"]:
        sys.exit(f"{package['url']} has the hash {found}, not the one in vendor.json.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        return {name: _content(members, one["from"]) for name, one in package["files"].items() if "from" in one}


def _content(members: tarfile.TarFile, name: str) -> bytes:
    content = members.extractfile(name)
    return content.read() if content is not None else sys.exit(f"{name} is not in the package.")


def check(name: str, content: bytes, sha256: str) -> None:
    """End with an error if a file is not the one in ``vendor.json``."""
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"{name} is not the file that vendor.json names.")


if __name__ == "__main__":
    for package in json.loads((FOLDER / "vendor.json").read_text("utf-8"))["packages"]:
        fetched = {} if "--check" in sys.argv else fetch(package)
        for name, one in package["files"].items():
            path = FOLDER / name
            content = fetched[name] if name in fetched else path.read_bytes()
            check(name, content, one["sha256"])
            path.write_bytes(content)
        print(f"{package['name']} {package['version']} ({package['license']}): {', '.join(package['files'])}")
