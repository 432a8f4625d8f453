"""The team of this process, as its settings name it. Without ``MARKET_DATA_POSTGRES`` there is none."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from market_data_pipeline.model.places import LOCKS, is_object, local_of
from market_data_pipeline.settings import PREFIX, load_settings
from market_data_pipeline.team.session import TeamSession

_Signature = tuple[str | None, str | None, str, tuple[int, int] | None]

_turn = threading.Lock()
_read: tuple[_Signature, str, Path] | None = None
_sessions: dict[str, TeamSession] = {}


def current_team() -> TeamSession | None:
    """Return the session with the PostgreSQL of the team, or None on one machine.

    Processes of one team share a lake, and have all of its locks in one database.
    """
    url, _ = _settings()
    if not url:
        return None
    with _turn:
        if url not in _sessions:
            _sessions[url] = TeamSession(url)
        return _sessions[url]


def team_name(path: Path) -> str | None:
    """Return the name of a file of the lake that is equal on all hosts. None if it is outside of the lake.

    The locks of a lake in a bucket are files on this machine (``lake/storage/objects.py``). They have the lake's names.
    """
    _, root = _settings()
    places = (root, local_of(root) / LOCKS) if is_object(root) else (root,)
    inside = (path.relative_to(place).as_posix() for place in places if path.is_relative_to(place))
    return next(inside, None)


def leave_team() -> None:
    """Close the sessions of this process, which releases its locks."""
    with _turn:
        while _sessions:
            _sessions.popitem()[1].close()


def _settings() -> tuple[str, Path]:
    """Return the URL and the data folder. The environment and ``.env`` are read again only if they changed."""
    global _read
    signature = os.environ.get(f"{PREFIX}POSTGRES"), os.environ.get(f"{PREFIX}DIR"), _folder(), _of_file()
    if _read is None or _read[0] != signature:
        settings = load_settings()
        _read = signature, settings.postgres, settings.root
    return _read[1], _read[2]


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed, and a lake with an absolute path works all the same
        return ""


def _of_file() -> tuple[int, int] | None:
    try:
        found = Path(".env").stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
