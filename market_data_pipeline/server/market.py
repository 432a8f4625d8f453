"""Routes of rows: one for each data type. They parse a request, and hand its bytes out."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from market_data_pipeline.client.pages import MOST_ROWS, PageRequest, RowsPage, empty_page, sum_of
from market_data_pipeline.errors import NotStoredError, UsageError
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.model.datasets import WORDS, data_types_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, Market, SeriesKey, intervals_of
from market_data_pipeline.server import answers, documented, fetching
from market_data_pipeline.server.answers import EncodedAnswer, facts_of, iso
from market_data_pipeline.server.formats import Encoding, Format, encoding_of
from market_data_pipeline.server.parameters import (
    PageToken,
    Strategy,
    columns_in,
    digest_of,
    range_in,
    symbol_in,
    token_in,
)
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.state import ServerState, state_of_app
from market_data_pipeline.sql.intervals import PARTS, is_interval

DEFAULT_ROWS = 500

_Market = Annotated[Market | None, Query(description="`spot`, `um` or `cm`. Default: the first that has the type.")]
_Time = Annotated[str | None, Query(max_length=64, description="ISO 8601, UTC without a zone, or milliseconds.")]
_Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows of the page.")]
_Token = Annotated[str | None, Query(max_length=400, description="`next_page_token` of the page before.")]
_Strategy = Annotated[
    Strategy | None,
    Query(description="`cache_only` reads the lake. `auto` fetches missing days first. `force_fresh` fetches days "
    "that are not final again. Default: set by the server."),
]  # fmt: skip
_Columns = Annotated[str | None, Query(max_length=400, description="Names separated by commas. Default: all.")]
_Forming = Annotated[bool, Query(description="Include the candle that is still open, if the live feed runs.")]
_Format = Annotated[Format | None, Query(description="Goes before `Accept`.")]
_Follow = Annotated[
    str | None,
    Query(pattern="^latest$", description="`latest`: go on to the next page even if the data changed meanwhile."),
]
_Symbol = Annotated[str, Path(max_length=40, examples=["BTCUSDT"], description="As Binance spells it.")]
_Interval = Annotated[
    str, Path(max_length=8, examples=["1h"], description="A number and `s`, `m`, `h`, `d`, `w` or `mo`.")
]


@cache
def market_routes() -> APIRouter:
    """Return the routes of all data types."""
    router = APIRouter(prefix="/api/v1/market", tags=["market"])
    for data_type in DataType:
        name = path_name(data_type)
        path = f"/{name}/{{symbol}}/{{interval}}" if data_type.has_interval else f"/{name}/{{symbol}}"
        router.add_api_route(
            path,
            _endpoint(data_type),
            methods=["GET"],
            name=name,
            operation_id=f"get_{name.replace('-', '_')}",
            summary=_summary(data_type),
            response_class=Response,
            responses=documented.of_rows(),
        )
    return router


def path_name(data_type: DataType) -> str:
    """Return the name of a data type in paths: ``candles``, ``agg-trades``, ``mark-price-klines``."""
    return "candles" if data_type is DataType.KLINES else data_type.sql_name.replace("_", "-")


def _summary(data_type: DataType) -> str:
    symbol, interval, market = "a symbol", "interval", "a market"
    return WORDS[data_type].headline.format(symbol=symbol, interval=interval, market=market)


def _endpoint(data_type: DataType) -> Callable[..., Awaitable[Response]]:
    async def rows(
        request: Request,
        symbol: _Symbol,
        interval: _Interval,
        market: _Market = None,
        start_time: _Time = None,
        end_time: _Time = None,
        limit: _Limit = DEFAULT_ROWS,
        page_token: _Token = None,
        cache_strategy: _Strategy = None,
        columns: _Columns = None,
        include_forming: _Forming = False,
        format: _Format = None,  # noqa: A002 - the name in the URL
        follow: _Follow = None,
    ) -> Response:
        start, end = range_in(start_time, end_time)
        wanted = PageRequest(
            market=market_for(data_type, market),
            data_type=data_type,
            symbol=symbol_in(symbol),
            interval=interval,
            start=start,
            end=end,
            limit=limit,
            columns=columns_in(columns),
            include_forming=include_forming,
        )
        encoding = encoding_of(
            request.headers.get("accept"), request.headers.get("accept-encoding"), format.value if format else None
        )
        state = state_of_app(request)
        chosen = permitted(request, state, cache_strategy)
        try:
            series = await series_for(state, wanted)
        except ProblemError as unknown:
            to_fetch = None if chosen is Strategy.CACHE_ONLY else await fetching.collected_series(state, wanted)
            if unknown.kind is not ProblemKind.UNKNOWN_SERIES or to_fetch is None:
                raise
            series = to_fetch
        return await answer_rows(
            request, state, wanted, series, encoding, page_token, chosen, follow_latest=follow is not None
        )

    if not data_type.has_interval:

        async def plain(request: Request, symbol: _Symbol, **others: Any) -> Response:
            return await rows(request, symbol, None, **others)  # type: ignore[arg-type]

        parameters = [one for one in inspect.signature(rows).parameters.values() if one.name != "interval"]
        plain.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        plain.__annotations__ = {one.name: one.annotation for one in parameters}
        return plain
    return rows


def market_for(data_type: DataType, market: Market | None) -> Market:
    """Return the market of a request. Without one, it is the first that has the data type.

    Raises:
        ProblemError: The market does not have the data type.
    """
    having = [one for one in Market if data_type in data_types_of(one)]
    if market is None:
        return having[0]
    if market not in having:
        raise ProblemError(ProblemKind.INVALID, f"{market} has no {data_type}. Pass market={' or '.join(having)}.")
    return market


async def series_for(state: ServerState, wanted: PageRequest) -> SeriesKey:
    """Return the stored series that answers a request.

    Raises:
        ProblemError: The interval does not exist, or nothing is stored. The text lists what is.
    """
    if wanted.interval is not None and not is_interval(wanted.interval):
        published = ", ".join(intervals_of(wanted.market))
        raise ProblemError(
            ProblemKind.UNKNOWN_SERIES,
            f"There is no interval {ascii(wanted.interval)[:20]}. Binance publishes {published}.",
        )
    checked_columns(wanted)
    try:
        known = state.source.known_series(wanted)
        if known is None:
            known = await state.workers.run(lambda: state.source.series_of(wanted))
    except (UsageError, NotStoredError) as error:
        raise ProblemError(ProblemKind.UNKNOWN_SERIES, str(error)) from None
    return known


def checked_columns(wanted: PageRequest) -> None:
    """Refuse columns that a data type does not have.

    Raises:
        ProblemError: A column does not exist.
    """
    if wanted.columns is None:
        return
    parts = PARTS if wanted.interval is not None else ()
    names = (*lake_schema(wanted.market, wanted.data_type).names, *parts)
    for name in wanted.columns:
        if name not in names:
            raise ProblemError(
                ProblemKind.INVALID, f"There is no column {ascii(name)[:60]}. There are: {', '.join(names)}."
            )


async def answer_rows(
    request: Request,
    state: ServerState,
    wanted: PageRequest,
    series: SeriesKey,
    encoding: Encoding,
    token_text: str | None,
    chosen: Strategy,
    *,
    follow_latest: bool,
) -> Response:
    """Answer a request for rows: from the cached answers if the series did not change, else from its source."""
    name = (wanted.market, wanted.data_type, wanted.symbol, wanted.interval, wanted.start, wanted.end)
    query = digest_of(*name)
    token = None
    if token_text is not None:
        token = token_in(token_text, query)
        if wanted.start is None:
            raise ProblemError(
                ProblemKind.BAD_TOKEN, "page_token needs start_time: without it, the newest rows are one page."
            )
    key = (name, wanted.limit, wanted.columns, wanted.include_forming, token_text, follow_latest, encoding)
    if chosen is not Strategy.FORCE_FRESH and chosen is Strategy(state.settings.serve_cache_strategy):
        state.parsed[raw_name(request.scope)] = (wanted, series, key)
    fingerprint = state.source.fingerprint(series)
    stamp = _stamp(state, wanted, series, fingerprint)
    answer = None
    if chosen is not Strategy.FORCE_FRESH:
        answer = _if_enough(state.answers.get(key, stamp), chosen)
    if answer is None:

        async def make() -> EncodedAnswer:
            made = await _made(state, wanted, series, fingerprint, encoding, query, token, chosen, follow_latest)
            if chosen is Strategy.CACHE_ONLY or (chosen is Strategy.AUTO and made.whole):
                state.answers.put(key, stamp, made)
            return made

        answer = await state.shared.run((key, stamp, chosen), make)
    state.numbers.served(answer.origins)
    return answers.respond(request.headers.get("if-none-match"), answer, private=state.key_for_all)


def _if_enough(answer: EncodedAnswer | None, strategy: Strategy) -> EncodedAnswer | None:
    """Return a cached answer, but None if a fetch could complete it, and the strategy is to fetch."""
    return answer if answer is None or answer.whole or strategy is Strategy.CACHE_ONLY else None


def raw_name(scope: Mapping[str, Any]) -> tuple[object, ...]:
    """Return everything of a request for rows that its answer depends on, unparsed."""
    chosen = tuple(pair for pair in scope["headers"] if pair[0] in _CHOOSING)
    return scope["path"], scope["query_string"], chosen


_CHOOSING = (b"accept", b"accept-encoding", b"x-mbx-time-unit")
"""Headers on which the bytes of an answer depend."""


def answer_at_once(state: ServerState, scope: Mapping[str, Any]) -> EncodedAnswer | None:
    """Return a cached answer to a request that was parsed before. None if there is none."""
    known = state.parsed.get(raw_name(scope))
    if known is None:
        return None
    wanted, series, key = known
    if state.source.known_series(wanted) != series:
        return None
    stamp = _stamp(state, wanted, series, state.source.fingerprint(series))
    found = state.answers.get(key, stamp, count_miss=False)
    return _if_enough(found, Strategy(state.settings.serve_cache_strategy))


def _stamp(state: ServerState, wanted: PageRequest, series: SeriesKey, fingerprint: str) -> Hashable:
    """Return what an answer depends on: the fingerprint of its series, and the open candle if it is requested."""
    return (fingerprint, state.source.forming_mark(series)) if wanted.include_forming else fingerprint


def permitted(request: Request, state: ServerState, strategy: Strategy | None) -> Strategy:
    """Return the strategy of a request, or the server's own.

    Raises:
        ProblemError: The request would fetch from the exchange, and may not.
    """
    own = Strategy(state.settings.serve_cache_strategy)
    if strategy in (None, own, Strategy.CACHE_ONLY) or own is not Strategy.CACHE_ONLY or state.has_key(request):
        return strategy or own
    raise ProblemError(
        ProblemKind.OFF,
        f"cache_strategy={strategy} spends the request limit of the exchange, so this server needs an API key for it. "
        "Send a key, or start the server with --cache-strategy auto.",
    )


async def _made(
    state: ServerState,
    wanted: PageRequest,
    series: SeriesKey,
    fingerprint: str,
    encoding: Encoding,
    query: str,
    token: PageToken | None,
    strategy: Strategy,
    follow_latest: bool,
) -> EncodedAnswer:
    def read() -> RowsPage:
        if token is not None and not follow_latest:
            _check_unchanged(state, wanted, series, fingerprint, query, token)
        begin = token.position if token is not None else None
        page = wanted if begin is None else replace(wanted, start=begin.time, skip=begin.skip)
        try:
            return state.source.read(page)
        except UsageError:
            if strategy is Strategy.CACHE_ONLY:
                raise
            return empty_page(page, series)  # it is fetched now

    def build(page: RowsPage, fetched: fetching.Fetched | None = None) -> EncodedAnswer:
        following = None
        if page.position is not None:
            known = token.last_day.date() if token is not None else None
            new = [(day, content) for day, content in page.days if known is None or day > known]
            total = ((token.delivered if token is not None else 0) + sum_of(new)) % (1 << 128)
            following = PageToken(page.position, query, total)
            state.verified[series, query, following.last_day.date(), fingerprint] = total
        facts = {
            "market": wanted.market,
            "data_type": wanted.data_type,
            "symbol": wanted.symbol,
            "interval": wanted.interval,
            "start": iso(page.first),
            "end": iso(page.until if page.position is not None or wanted.end is not None else None),
            **facts_of(page),
            "notes": fetched.notes if fetched is not None else [],
            "next_page_token": following.encoded() if following is not None else None,
            "time_unit": "us",
        }
        fixed = wanted.start is not None and (wanted.end is not None or page.position is not None)
        made = answers.encoded(
            _shown(page, wanted),
            facts,
            encoding,
            (query, wanted.limit, wanted.columns, page.forming),
            lasting=fixed and page.final and strategy is not Strategy.FORCE_FRESH,
            growing=not page.final,
            fleeting=wanted.include_forming,
        )
        more = fetched.headers if fetched is not None else {}
        return replace(
            made,
            headers=(*_headers(facts).items(), *more.items()),
            origins=fetched.origins(page) if fetched is not None else page.origins,
            whole=page.is_whole and (fetched is None or not (fetched.asked or fetched.notes)),
        )

    if strategy is Strategy.CACHE_ONLY:
        return await state.workers.run(lambda: build(read()))
    page = await state.workers.run(read)
    fetched = await fetching.complete(state, series, page, force=strategy is Strategy.FORCE_FRESH)
    page = await state.workers.run(read) if fetched.again else fetched.page
    return await state.workers.run(lambda: build(page, fetched))


def _check_unchanged(
    state: ServerState, wanted: PageRequest, series: SeriesKey, fingerprint: str, query: str, token: PageToken
) -> None:
    """Refuse the next page if a day of an earlier page changed.

    Raises:
        ProblemError: It did.
    """
    last = token.last_day.date()
    name = (series, query, last, fingerprint)
    found = state.verified.get(name)
    if found is None:
        found = state.source.delivered(series, wanted.start or token.position.time, last)
        state.verified[name] = found
    if found != token.delivered:
        raise ProblemError(
            ProblemKind.CHANGED,
            "Days of earlier pages changed since. Begin without page_token, or pass follow=latest to go on.",
        )


def _shown(page: RowsPage, wanted: PageRequest) -> pa.Table:
    """Return the rows without labels that are the same in all of them, unless they were requested."""
    labels = [name for name in labels_of(wanted.data_type) if name not in (wanted.columns or ())]
    return answers.aware(page.table.drop_columns([name for name in labels if name in page.table.column_names]))


_MOST_IN_HEADER = 8
"""Most states, or missing spans, that a header has."""


def _headers(facts: dict[str, Any]) -> dict[str, str]:
    """Return what a client needs in formats that have rows only."""
    found = {"X-Content-Version": facts["version"]}
    for name in ("states", "missing"):
        spans = facts[name]
        more = [{"more": len(spans) - _MOST_IN_HEADER}] if len(spans) > _MOST_IN_HEADER else []
        text = json.dumps([*spans[:_MOST_IN_HEADER], *more])
        found[f"X-{name.title()}"] = text if len(text) <= _HEADER_BYTES else json.dumps([{"more": len(spans)}])
    if facts["next_page_token"] is not None:
        found["X-Next-Page-Token"] = facts["next_page_token"]
    return found


_HEADER_BYTES = 4000
