"""The folder of an export: files replaced one by one, and ``export.json`` and ``gaps.json`` next to them.

``export.json`` shows that the folder is an export. A folder with other files is refused, so nothing of yours is
replaced. Contents of the files belong to the modules of the formats.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any

from market_data_pipeline import __version__
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import storage

_MANIFEST, _GAPS = "export.json", "gaps.json"
_LOCK, _STAGING = ".export.lock", ".market-data-export-"


class ExportFolder:
    """The folder that receives an export. Use it as a block: for its duration, no other export writes there.

    Args:
        folder: May be missing. Links in its path are followed.
        form: Name of the format.
        root: The data folder, which must not receive exports.
    """

    def __init__(self, folder: Path, form: str, root: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self._form = form
        self._real = self.folder.resolve()
        if self._real.is_relative_to(root.resolve()):
            raise UsageError(f"{folder} is inside of the data folder {root}. Choose a folder outside of it.")
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{folder} is not a folder.")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Create the folder, or check that an earlier export of this format made it.

        Raises:
            UsageError: The folder has other files, or an export in another format.
            SeriesBusyError: Another export writes to the folder.
            StorageError: The folder is not writable.
        """
        self._check()
        with storage.only_writer(self.folder / _LOCK, 0, f"the export {self.folder}"):
            self._series = self._check()
            self._gaps = _read(self.folder / _GAPS, []) if self._series else []
            for left in self.folder.glob(f"{_STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
            self._write_manifest()
            yield

    def _check(self) -> dict[str, dict[str, Any]]:
        """Return the series of the earlier export."""
        if (self.folder / _MANIFEST).is_file():
            made = _read(self.folder / _MANIFEST, {})
            if not isinstance(made, dict) or made.get("format") != self._form:
                made_as = made.get("format") if isinstance(made, dict) else None
                raise UsageError(f"{self.folder} has an export in the format {made_as}. Choose another folder.")
            return {str(one["series"]): one for one in made["series"]}
        if self.folder.is_dir() and any(path.name[0] != "." for path in self.folder.iterdir()):
            raise UsageError(
                f"{self.folder} has files that are not from an export. Choose an empty folder, or a new one."
            )
        return {}

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Create a temporary folder on the same disk for the duration of the block."""
        made = Path(mkdtemp(prefix=_STAGING, dir=self.folder))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def replace(
        self,
        series: str,
        place: str,
        staged: Path,
        facts: Mapping[str, object],
        gaps: Sequence[Mapping[str, object]],
    ) -> list[str]:
        """Move the files of a series to their places, and remove those of its earlier export. Return their names.

        Args:
            place: Path of the file or folder of the series. Another series with the same path is replaced.
            staged: A folder with the new files, from :meth:`staging`.
            facts: Fields of the series for ``export.json``.
            gaps: Its gaps, for ``gaps.json``.

        Raises:
            UsageError: A link in the folder leads outside of it.
            StorageError: A file cannot be written.
        """
        new = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
        replaced = {name: one for name, one in self._series.items() if name == series or one.get("path") == place}
        earlier = {str(file) for one in replaced.values() for file in one["files"]}
        for name in replaced:
            del self._series[name]
        of_others = {str(file) for one in self._series.values() for file in one["files"]}
        # If the process is killed, the next export removes the files that are listed here.
        self._series[series] = {"series": series, "path": place, "files": sorted({*earlier, *new})}
        self._write_manifest()
        for name in new:
            path = self._inside(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            (staged / name).replace(path)
        for name in earlier - {*new, *of_others}:
            storage.remove(self._inside(name))
        self._series[series] = {"series": series, "path": place, **facts, "files": new}
        self._gaps = [*(gap for gap in self._gaps if gap["series"] not in {series, *replaced}), *gaps]
        storage.put(self.folder / _GAPS, _lines(self._gaps).encode())
        self._write_manifest()
        return new

    def _inside(self, name: str) -> Path:
        path = self.folder / name
        if ".." in PurePosixPath(name).parts or not path.parent.resolve().is_relative_to(self._real):
            raise UsageError(f"{path} is outside of {self.folder}. Remove the link or the file {_MANIFEST}.")
        return path

    def _write_manifest(self) -> None:
        made = {"format": self._form, "program": f"market-data-pipeline {__version__}"}
        series = _lines([self._series[name] for name in sorted(self._series)]).rstrip()
        text = f'{json.dumps(made, ensure_ascii=False)[:-1]}, "series": {series}}}\n'
        storage.put(self.folder / _MANIFEST, text.encode())


def _lines(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a JSON array with an object on each line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def _read(path: Path, missing: Any) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return missing
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}). Remove its folder, or choose another one.") from error
