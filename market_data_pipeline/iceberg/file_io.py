"""Files of table metadata in a folder: written atomically and flushed to disk, as the lake's own files are.

pyiceberg writes local files without flushing them. After a power cut, a catalog could name metadata that is gone.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from pyiceberg.io import InputFile, OutputFile, OutputStream
from pyiceberg.io.pyarrow import PyArrowFileIO

from market_data_pipeline.lake import storage

_SCHEME = "file://"


class DurableFileIO(PyArrowFileIO):
    """Files of Iceberg. Local ones are written as the lake writes its own."""

    def new_output(self, location: str) -> Any:  # pyiceberg wants its own class of files here
        """Return a file to write."""
        if location.startswith(_SCHEME):
            return _LocalOutput(location, super().new_input(location))
        return super().new_output(location)


class _LocalOutput(OutputFile):
    def __init__(self, location: str, written: InputFile) -> None:
        super().__init__(location)
        self._path = Path(location.removeprefix(_SCHEME))
        self._written = written

    def __len__(self) -> int:
        return self._path.stat().st_size

    def exists(self) -> bool:
        return self._path.exists()

    def to_input_file(self) -> InputFile:
        return self._written

    def create(self, overwrite: bool = False) -> OutputStream:
        if not overwrite and self.exists():
            raise FileExistsError(f"{self.location} exists already.")
        return _LocalStream(self._path)


class _LocalStream(BytesIO):
    """Bytes of a new file. They replace the file when the stream is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            try:
                storage.put(self._path, self.getvalue())
            finally:
                super().close()

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:  # a part of a file is worth nothing
            super().close()
        self.close()
