"""The archive: listing over pages, and what a wrong address says."""

from __future__ import annotations

from datetime import date

import pytest

from market_data_pipeline.errors import NetworkError
from market_data_pipeline.sandbox import OtherBody, RawAnswer
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline_tests.support.world import World, klines


def test_a_long_folder_is_listed_over_pages(world: World) -> None:
    prefix = klines("BTCUSDT", "1d").archive_folder()
    world.forget()
    zips = [file.key for file in ArchiveClient(world.settings).list_files(prefix) if file.key.endswith(".zip")]
    days = (date(2026, 3, 4) - date(2017, 8, 17)).days + 1
    assert len(zips) == len(set(zips)) == days
    assert zips[-1].endswith("BTCUSDT-1d-2026-03-04.zip")
    assert len(world.sandbox.requests) == -(-2 * days // 1000)


def test_folders_are_the_symbols_of_a_market(world: World) -> None:
    symbols = ArchiveClient(world.settings).list_folders("data/spot/daily/klines/")
    assert {"BTCUSDT", "ETHUSDT", "LUNAUSDT", "币安人生USDT"} <= set(symbols)


def test_an_address_that_lists_nothing_is_named(world: World) -> None:
    world.set(vision_listing_url=f"{world.sandbox.url}/api/v3/time")
    with pytest.raises(NetworkError, match="MARKET_DATA_VISION_LISTING_URL"):
        ArchiveClient(world.settings).list_folders("data/")


def test_a_page_can_begin_in_the_middle_of_a_folder(world: World) -> None:
    key = klines("BTCUSDT", "1d")
    archive = ArchiveClient(world.settings)
    world.forget()
    after = key.archive_daily(date(2026, 3, 2)).removesuffix(".zip")
    files, more = archive.list_page(key.archive_folder(), after)
    expected = [key.archive_daily(date(2026, 3, number)) for number in (2, 3, 4)]
    assert [file.key for file in files] == [name for zip_ in expected for name in (zip_, f"{zip_}.CHECKSUM")]
    assert not more
    assert len(world.sandbox.requests) == 1
    assert archive.list_page(key.archive_folder(), key.archive_daily(date(2018, 1, 1)))[1]


# --- pages that are not what was asked for ----------------------------------------------------------------------------

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
FOLDER = "data/spot/daily/klines/BTCUSDT/1d/"


def contents(name: str = "a.zip", size: str = "1", etag: str = "ab12", date: str = "2026-03-01T00:00:00.000Z") -> str:
    key = name if name.startswith("/") else FOLDER + name
    return (
        f"<Contents><Key>{key}</Key><LastModified>{date}</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size></Contents>"
    )


def folder(name: str) -> str:
    return f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"


def page(*parts: str, truncated: str = "<IsTruncated>false</IsTruncated>", head: str = "") -> str:
    return f"{head}<ListBucketResult {NAMESPACE}>{''.join(parts)}{truncated}</ListBucketResult>"


MORE = "<IsTruncated>true</IsTruncated>"
LAUGHS = '<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "an empty body|not XML"),
        ("<html><head><title>Hotel WiFi</title></head></html>", "titled 'Hotel WiFi'"),
        ("<?xml version='1.0'?><page><html/></page>", "web page|its root"),
        ("<Error><Code>SlowDown</Code></Error>", "its root is 'Error'"),
        ("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>", "its root"),
        (f"<?xml version='1.0' encoding='x-odd'?><ListBucketResult {NAMESPACE}/>", "not XML|encoding"),
        (page(contents("&b;"), head=LAUGHS), "document type"),
        (page(contents("&e;"), head=EXTERNAL), "document type"),
        (page(contents(), truncated=""), "IsTruncated is ''"),
        (page(contents(), truncated="<IsTruncated>maybe</IsTruncated>"), "IsTruncated is 'maybe'"),
        (page(truncated=MORE), "to continue from"),
        (page(folder(FOLDER + "a/"), truncated=MORE), "to continue from"),
        (page(contents(), truncated=MORE), "its keys are out of order"),
        (page(contents("b.zip"), "<NextMarker>a</NextMarker>", truncated=MORE), "comes before its last key"),
        (page(contents("b.zip"), contents("a.zip")), "its keys are out of order"),
        (page(contents(), contents()), "its keys are out of order"),
        (page(contents(), f"<Prefix>{FOLDER}x/</Prefix>"), "instead of"),
        (page(contents("/elsewhere/a.zip")), "is not below"),
        (page(contents("../../../a.zip")), "not the key of a file"),
        (page(contents("..")), "not the key of a file"),
        (page(contents("a\u202e.zip")), "not the key of a file"),
        (page(folder(FOLDER + "../")), "not the key of a file"),
        (page(folder(FOLDER + "a")), "does not end with a slash"),
        (page(contents(size="-1")), "the size of .* is '-1'"),
        (page(contents(size="1e3")), "the size of"),
        (page(contents(size="\u0663")), "the size of"),
        (page(contents(size="")), "the size of"),
        (page(contents(etag="a b")), "the ETag of"),
        (page(contents(date="yesterday")), "the date of"),
        (page(*(contents(f"{n:04}") for n in range(1001))), "1,001 keys"),
        (page("<a/>" * 100_000), "far more elements"),
    ],
)
def test_page_that_does_not_match_the_request_is_refused(world: World, body: str, said: str) -> None:
    """None of them may look like archives that vanished, or like a folder without files."""
    world.sandbox.faults.add(OtherBody(path="^/$", body=body, media_type="application/xml"))
    archive = ArchiveClient(world.settings)
    for ask in (archive.list_files, archive.list_folders):
        with pytest.raises(NetworkError, match=said) as told:
            ask(FOLDER)
        assert world.sandbox.url in str(told.value)
        assert len(str(told.value)) < 1000
    assert len(world.sandbox.requests) <= 4


def test_a_listing_without_end_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market_data_pipeline.sources.binance.archive.MOST_PAGES", 3)
    world.forget()
    with pytest.raises(NetworkError, match="more than 3 pages"):
        ArchiveClient(world.settings).list_files(FOLDER)
    assert len(world.sandbox.requests) == 3


def test_a_folder_that_lists_itself_is_no_file(world: World) -> None:
    body = page(contents(""), contents("a.zip"))
    world.sandbox.faults.add(OtherBody(path="^/$", body=body, media_type="application/xml"))
    assert [file.key for file in ArchiveClient(world.settings).list_files(FOLDER)] == [f"{FOLDER}a.zip"]


@pytest.mark.parametrize(
    ("etag", "modified", "kept"),
    [
        ('"abc"', "Thu, 05 Mar 2026 08:00:00 GMT", ("abc", "Thu, 05 Mar 2026 08:00:00 GMT")),
        ('W/"abc"', "yesterday", ("abc", None)),
        ("a b", "", (None, None)),
        ("\xff\xfe", "\xff\xfe", (None, None)),
    ],
)
def test_odd_headers_of_a_zip_are_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch, etag: str, modified: str, kept: tuple[str | None, str | None]
) -> None:
    key = klines("BTCUSDT", "1d").archive_daily(date(2026, 3, 1))
    real = ArchiveClient(world.settings).fetch(key)
    assert real is not None
    headers = {"ETag": etag, "Last-Modified": modified}
    body = real.data.decode("latin-1")
    raw = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    begin = f"HTTP/1.1 200 OK\r\n{raw}Content-Length: {len(real.data)}\r\n\r\n{body}"
    world.sandbox.faults.add(RawAnswer(path=r"\.zip$", begin=begin, hang_up=True))
    file = ArchiveClient(world.settings).fetch(key)
    assert file is not None
    assert (file.etag, file.last_modified) == kept
    assert file.data == real.data
