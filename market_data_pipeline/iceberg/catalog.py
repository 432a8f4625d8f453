"""Catalogs: open the one of the settings, and create, load or update a table in it.

Commits of data files belong to ``commits.py``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests
import sqlalchemy.exc
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchTableError,
    NotInstalledError,
    RESTError,
    TableAlreadyExistsError,
)
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import Table
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadataV2
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import AddSchemaUpdate, SetCurrentSchemaUpdate

from market_data_pipeline.errors import EnvironmentFaultError, UsageError
from market_data_pipeline.iceberg.tables import TableForm
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.places import is_object
from market_data_pipeline.settings import Settings

CATALOG = "market_data"
"""Name of the catalog. Engines that share a SQL catalog must use the same name."""

_FILE_IO = "market_data_pipeline.iceberg.file_io.DurableFileIO"

# Iceberg has no dictionary type, and pyiceberg warns once for each file.
logging.getLogger("pyiceberg.io.pyarrow").setLevel(logging.ERROR)


def layout_of_tables(settings: Settings) -> Layout:
    """Return the layout of the lake.

    Raises:
        UsageError: The lake is in a bucket. The links to its files need a folder.
    """
    if is_object(settings.root):
        raise UsageError(
            f"{settings.root} is a bucket, and Iceberg tables are made of a lake in a folder. Copy it, and publish the "
            "copy: `market-data copy DIR`."
        )
    return Layout(settings.root)


@contextmanager
def opened_catalog(settings: Settings) -> Iterator[Catalog]:
    """Open the catalog of the settings: SQL, REST, or by default a SQLite file in the data folder.

    pyiceberg's own configuration of a catalog ``market_data`` applies as well, for example the environment variable
    ``PYICEBERG_CATALOG__MARKET_DATA__CREDENTIAL``.

    Raises:
        UsageError: The setting or the path of the data folder cannot be used.
        EnvironmentFaultError: The catalog does not answer.
    """
    layout = layout_of_tables(settings)
    if set("#?%") & set(str(layout.iceberg)):
        raise UsageError(f"Iceberg needs a data folder without #, ? and %: {layout.iceberg} is a part of each address.")
    uri = settings.iceberg_catalog or f"sqlite:///{layout.iceberg}/catalog.db"
    with _faults_in_words(uri):
        if not settings.iceberg_catalog:
            layout.iceberg.mkdir(parents=True, exist_ok=True)
        kind = "rest" if uri.startswith(("http://", "https://")) else "sql"
        catalog = load_catalog(CATALOG, **{"type": kind, "uri": uri, "py-io-impl": _FILE_IO})
        try:
            yield catalog
        finally:
            catalog.close()


@contextmanager
def _faults_in_words(uri: str) -> Iterator[None]:
    try:
        yield
    except NotInstalledError as error:
        missing = getattr(error.__cause__, "name", None) or "of its driver"
        raise UsageError(
            f"The Iceberg catalog {_without_password(uri)} needs the package {missing}, which is not installed."
        ) from error
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise UsageError(
            f"MARKET_DATA_ICEBERG_CATALOG is {_without_password(uri)}, which is no address of a catalog. Use, for "
            "example, postgresql+psycopg://user@host/database or https://host/catalog."
        ) from error
    except FileNotFoundError as error:
        raise EnvironmentFaultError(
            f"The Iceberg catalog {_without_password(uri)} names a file that is gone: {error.filename or error}. Drop "
            "that table in the catalog, and publish again."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, requests.RequestException, RESTError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise EnvironmentFaultError(
            f"The Iceberg catalog {_without_password(uri)} cannot be used: {reason}. The tables have their last "
            "published state. Publish again when it answers."
        ) from error


def _without_password(uri: str) -> str:
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


def existing_table(catalog: Catalog, form: TableForm) -> Table | None:
    """Return a table of the catalog; None if there is none."""
    try:
        return catalog.load_table(form.name.identifier)
    except NoSuchTableError:
        return None


def ready_table(catalog: Catalog, form: TableForm, location: str, *, is_own: bool) -> Table:
    """Return a table with the columns of this version. Create it if there is none.

    Args:
        location: URI of the table's folder.
        is_own: True if the catalog lies in the data folder and has no tables of other folders.

    Raises:
        UsageError: The catalog has a table of this name from another data folder.
    """
    try:
        table = existing_table(catalog, form)
    except FileNotFoundError:
        if not is_own:
            raise
        table = None  # the data folder was moved
        catalog.drop_table(form.name.identifier)
    if table is not None and table.location() != location:
        if not is_own:
            raise UsageError(
                f"The catalog's table {form.name} belongs to {table.location()}, and this data folder is {location}. "
                "Use another catalog, or drop that table first."
            )
        catalog.drop_table(form.name.identifier)
        table = None
    if table is None:
        catalog.create_namespace_if_not_exists(form.name.namespace)
        try:
            return _created(catalog, form, location)
        except TableAlreadyExistsError:  # another publish was faster
            return catalog.load_table(form.name.identifier)
    return _with_new_columns(table, form)


def _created(catalog: Catalog, form: TableForm, location: str) -> Table:
    # `create_table` would number the columns itself, so the first metadata is written here.
    metadata = TableMetadataV2.model_validate(
        {
            "format-version": 2,
            "table-uuid": uuid.uuid4(),
            "location": location,
            "schemas": [form.schema],
            "last-column-id": form.schema.highest_field_id,
            "current-schema-id": form.schema.schema_id,
            "partition-specs": [form.spec],
            "default-spec-id": form.spec.spec_id,
            "last-partition-id": form.spec.last_assigned_field_id,
            "sort-orders": [UNSORTED_SORT_ORDER],
            "default-sort-order-id": UNSORTED_SORT_ORDER.order_id,
            "properties": form.properties,
        }
    )
    path = load_location_provider(location, form.properties).new_table_metadata_file_location()
    ToOutputFile.table_metadata(metadata, catalog._load_file_io(location=path).new_output(path))
    return catalog.register_table(form.name.identifier, path)


def _with_new_columns(table: Table, form: TableForm) -> Table:
    """Add the columns of a newer version of this project. Their numbers are fixed, too."""
    known = {field.field_id for field in table.schema().fields}
    if known.issuperset(field.field_id for field in form.schema.fields):
        return table
    with table.transaction() as transaction:
        number = 1 + max(schema.schema_id for schema in table.metadata.schemas)
        schema = form.schema.model_copy(update={"schema_id": number})
        newest = SetCurrentSchemaUpdate.model_validate({"action": "set-current-schema", "schema-id": -1})
        transaction._stage((AddSchemaUpdate(schema=schema), newest))
        transaction.set_properties(form.properties)
    return table


LOST_RACE = CommitFailedException
"""Raised by a commit if another one came first. The table is as that one left it."""
