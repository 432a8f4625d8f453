"""Routes of Binance's paths. They answer from the lake, and refuse the rest with Binance's codes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from market_data_pipeline import clock
from market_data_pipeline.client.pages import RowsPage
from market_data_pipeline.errors import DamagedFileError, MarketDataError, NotStoredError, UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.binance_dialect import Refusal, SymbolRules
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.server import answers, fetching
from market_data_pipeline.server.answers import EncodedAnswer
from market_data_pipeline.server.binance.rows import ReadRows, RowsCall, RowsReader, call_of, encoded_rows, not_stored
from market_data_pipeline.server.binance.symbols import listed_symbols
from market_data_pipeline.server.binance.tickers import change_of, price_of
from market_data_pipeline.server.formats import COMPRESS_FROM, compressed, encoding_of
from market_data_pipeline.server.market import raw_name
from market_data_pipeline.server.parameters import Strategy, digest_of
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.server.rows import RowSource
from market_data_pipeline.server.state import ServerState, state_of_app
from market_data_pipeline.universe.config import listings_near

logger = logging.getLogger(__name__)

JSON = "application/json;charset=UTF-8"

_ROOTS = ("/api/v3", "/fapi", "/dapi", "/futures/data", "/sapi", "/papi", "/eapi", "/wapi")
"""Beginnings of Binance's paths."""

_PUBLIC = (
    *("depth", "avgPrice", "ticker", "ticker/bookTicker", "ticker/tradingDay", "trades", "premiumIndex"),
    *("fundingInfo", "openInterest", "constituents", "indexInfo", "assetIndex", "basis"),
)
"""Endpoints of market data that the lake cannot answer."""

_Answer = Callable[[Request, ServerState], Awaitable[Response]]


def is_binance_path(path: str) -> bool:
    """Return True if a path is one of Binance's, so that errors have its form."""
    return path.startswith(tuple(f"{root}/" for root in _ROOTS))


def binance_routes() -> list[Route]:
    """Return the routes of all three markets."""
    routes = []
    for prefix, market in dialect.PREFIXES.items():
        routes += [
            _route(f"{prefix}/ping", _json_of(lambda *_: {})),
            _route(f"{prefix}/time", _json_of(_time(market))),
        ]
        names = [*dialect.CANDLES[market], "aggTrades", "historicalTrades"]
        names += ["fundingRate"] if market is not Market.SPOT else []
        routes += [_route(f"{prefix}/{name}", _rows_of(market, name)) for name in names]
        routes += [_route(f"{prefix}/exchangeInfo", _exchange_info(market))]
        routes += [_route(f"{prefix}/{name}", _tickers(market, name)) for name in dialect.TICKERS]
    routes += [_route(f"{dialect.STATISTICS_PREFIX}/{name}", _rows_of(Market.UM, name)) for name in dialect.STATISTICS]
    public = [f"{prefix}/{name}" for prefix in dialect.PREFIXES for name in _PUBLIC]
    routes += [_route(path, _unsupported) for path in (*public, f"{dialect.STATISTICS_PREFIX}/basis")]
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    routes += [Route(f"{root}/{{rest:path}}", _guarded(_signed), methods=methods) for root in _ROOTS]
    return routes


def refused(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer to a refused request."""
    text = {**refusal.payload, "msg": str(refusal).encode("utf-8", "replace").decode()}
    return Response(orjson.dumps(text), refusal.status, {"Cache-Control": "no-store", **(headers or {})}, JSON)


def refusal_of(problem: ProblemError) -> Refusal:
    """Return a problem of the server in Binance's form."""
    code = _CODES.get(problem.kind, dialect.UNKNOWN_ERROR)
    return Refusal(code, str(problem), problem.kind.status)


_CODES = {
    ProblemKind.NO_KEY: dialect.NO_PERMISSION,
    ProblemKind.OFF: dialect.NO_PERMISSION,
    ProblemKind.FOREIGN: dialect.NO_PERMISSION,
    ProblemKind.BUSY: dialect.OVERLOADED,
    ProblemKind.UNKNOWN_SERIES: -1121,
}


def _route(path: str, answer: _Answer) -> Route:
    return Route(path, _guarded(answer), methods=["GET"])


def _guarded(answer: _Answer) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that answers every error in Binance's form."""

    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request, state_of_app(request))
        except Refusal as refusal:
            return refused(refusal)
        except ProblemError as problem:
            return refused(refusal_of(problem), problem.headers)
        except DamagedFileError as error:
            return refused(Refusal(dialect.UNKNOWN_ERROR, str(error), 503))
        except MarketDataError as error:
            return refused(Refusal(dialect.UNKNOWN_ERROR, str(error), 500))
        except Exception:
            logger.exception("A request could not be answered.")
            return refused(Refusal(dialect.UNKNOWN_ERROR, "The server failed. Its log has the reason.", 500))

    return endpoint


async def _signed(request: Request, _: ServerState) -> Response:
    return refused(
        Refusal(
            dialect.NO_PERMISSION,
            "Invalid API-key, IP, or permissions for action. This is no exchange: it answers market data from a lake, "
            f"and has no {request.method} {request.url.path[:100]}.",
            403,
        )
    )


async def _unsupported(request: Request, _: ServerState) -> Response:
    name = request.url.path[:100]
    return refused(Refusal(-1020, f"This operation is not supported. The lake cannot answer {name}.", 404))


def _time(market: Market) -> Callable[[Request, ServerState], dict[str, Any]]:
    def answer(request: Request, _: ServerState) -> dict[str, Any]:
        return {"serverTime": clock.to_us(clock.now()) // (1 if is_fine(request, market) else 1_000)}

    return answer


def _exchange_info(market: Market) -> _Answer:
    async def answer(request: Request, state: ServerState) -> Response:
        symbols = await _symbols(state, market)
        wanted = dialect.listed_names_in(dict(request.query_params), market)
        if wanted is not None:
            chosen = [one for one in symbols if one.symbol in wanted]
            if len(chosen) < len(wanted):
                raise dialect.unknown_symbol()
            symbols = chosen
        divisor = 1 if is_fine(request, market) else 1_000
        document = dialect.exchange_info(market, clock.to_us(clock.now()), symbols, divisor)
        headers = {"Cache-Control": "no-store", **weight_headers(dialect.weight_of(market, "exchangeInfo", {}))}
        body = await state.workers.run(lambda: orjson.dumps(document))
        coding = encoding_of(None, request.headers.get("accept-encoding"), "json").coding
        if coding != "identity" and len(body) >= COMPRESS_FROM:
            body = await state.workers.run(lambda: compressed(body, coding))
            headers["Content-Encoding"] = coding
        return Response(body, 200, headers, JSON)

    return answer


async def _symbols(state: ServerState, market: Market) -> list[SymbolRules]:
    """Return the symbols of a market. They are listed again at most every :data:`_SYMBOLS_SECONDS`."""
    now, name = answers.time_now(), ("binance symbols", market)
    kept = state.symbols.get(name)
    if kept is not None and 0 <= now - kept[0] < _SYMBOLS_SECONDS:
        return kept[1]

    def read() -> list[SymbolRules]:
        return listed_symbols(Layout(state.settings.root), market, listings_near(state.settings.universe))

    async def make() -> list[SymbolRules]:
        found = await state.workers.run(read)
        state.symbols[name] = (now, found)
        return found

    found: list[SymbolRules] = await state.shared.run(name, make)
    return found


def _tickers(market: Market, endpoint: str) -> _Answer:
    async def answer(request: Request, state: ServerState) -> Response:
        parameters = dict(request.query_params)
        known = {one.symbol: one for one in await _symbols(state, market)}
        chosen = [known[name] for name in dialect.chosen_symbols(parameters, market, known)]
        found = await state.workers.run(lambda: _tickers_of(state, market, endpoint, chosen))
        named = "symbol" in parameters or "symbols" in parameters
        refusal = next((one for one in found if isinstance(one, Refusal)), None)
        shown = [one for one in found if not isinstance(one, Refusal)]
        if refusal is not None and (named or not shown):
            raise refusal
        if not shown:
            raise dialect.invalid("symbol", f"The lake has no klines in {market}.")
        if market is Market.SPOT and parameters.get("type") == "MINI":
            shown = [{name: one[name] for name in dialect.MINI_TICKER if name in one} for one in shown]
        single = dialect.is_single_ticker(parameters, market)
        headers = {"Cache-Control": "no-store", **weight_headers(dialect.weight_of(market, endpoint, parameters))}
        return Response(orjson.dumps(shown[0] if single else shown), 200, headers, JSON)

    return answer


def _tickers_of(
    state: ServerState, market: Market, endpoint: str, chosen: Iterable[SymbolRules]
) -> list[dict[str, Any] | Refusal]:
    """Return a ticker for each symbol, or the reason why the lake has none."""
    found: list[dict[str, Any] | Refusal] = []
    for one in chosen:
        try:
            found.append(_TICKERS[endpoint](state.source, market, one))
        except Refusal as refusal:
            found.append(refusal)
    return found


_TICKERS: Mapping[str, Callable[[RowSource, Market, SymbolRules], dict[str, Any]]] = {
    "ticker/price": price_of,
    "ticker/24hr": change_of,
}
_SYMBOLS_SECONDS = 30


def _json_of(document: Callable[[Request, ServerState], dict[str, Any]]) -> _Answer:
    async def answer(request: Request, state: ServerState) -> Response:
        headers = {"Cache-Control": "no-store", **weight_headers(1)}
        return Response(orjson.dumps(document(request, state)), 200, headers, JSON)

    return answer


def is_fine(request: Request, market: Market) -> bool:
    """Return True if the client requests microseconds, which spot alone has."""
    return market is Market.SPOT and request.headers.get("x-mbx-time-unit", "").upper() == "MICROSECOND"


def weight_headers(weight: int) -> dict[str, str]:
    """Return the headers with the used weight. It is that of the request alone, because this server has no budget."""
    return {"X-MBX-USED-WEIGHT-1M": str(weight), "X-MBX-USED-WEIGHT": str(weight)}


# --- rows --------------------------------------------------------------------------------------------------------


def _rows_of(market: Market, endpoint: str) -> _Answer:
    async def answer(request: Request, state: ServerState) -> Response:
        parameters = dict(request.query_params)
        call = call_of(market, endpoint, parameters, fine=is_fine(request, market))
        series = await series_of_call(state, call)
        coding = encoding_of(None, request.headers.get("accept-encoding"), "json").coding
        key = ("binance", call, coding)
        fingerprint = state.source.fingerprint(series)
        found = state.answers.get(key, fingerprint)
        if found is None:

            async def make() -> EncodedAnswer:
                made = await _made(state, call, series, coding, dialect.weight_of(market, endpoint, parameters))
                if all(source != "exchange" for source, _ in made.origins):
                    state.answers.put(key, fingerprint, made)
                return made

            found = await state.shared.run((key, fingerprint), make)
        state.parsed[raw_name(request.scope)] = (call.page(), series, key)
        state.numbers.served(found.origins)
        return answers.respond(request.headers.get("if-none-match"), found, private=state.key_for_all)

    return answer


async def series_of_call(state: ServerState, call: RowsCall) -> SeriesKey:
    """Return the stored series that answers a request.

    Raises:
        Refusal: The lake does not have it.
    """
    page = call.page()
    known = state.source.known_series(page)
    if known is not None:
        return known
    try:
        return await state.workers.run(lambda: state.source.series_of(page))
    except (UsageError, NotStoredError):
        pass
    layout = Layout(state.settings.root)
    raise await state.workers.run(lambda: not_stored(layout, call))


async def _made(state: ServerState, call: RowsCall, series: SeriesKey, coding: str, weight: int) -> EncodedAnswer:
    reader = RowsReader(state.source, Layout(state.settings.root))
    found: ReadRows = await state.workers.run(lambda: reader.read(call, series))
    page, fetched = found.page, None
    if page is not None and Strategy(state.settings.serve_cache_strategy) is Strategy.AUTO:
        fetched = await fetching.complete(state, series, page, force=False)
        if fetched.again:
            found = await state.workers.run(lambda: reader.read(call, series))
        elif fetched.headers:
            found = replace(found, page=fetched.page)

    def build() -> EncodedAnswer:
        reader.refuse_missing(call, series, found)
        body = encoded_rows(call, found.table)
        used = coding if len(body) >= COMPRESS_FROM else "identity"
        final = found.page is not None and found.page.final
        fixed = call.start is not None and (call.end is not None or _is_full(found))
        minute = answers.time_now() // 60 * 60 + 60
        return EncodedAnswer(
            body=compressed(body, used),
            media_type=JSON,
            coding=used,
            etag=f'"{digest_of(call, used, body.decode())}"',
            lasting=fixed and final,
            expires=None if final else minute,
            headers=(("Vary", "Accept-Encoding, X-MBX-TIME-UNIT"), *weight_headers(weight).items()),
            origins=_origins(found.page, fetched),
            whole=found.page is None or found.page.is_whole,
        )

    return await state.workers.run(build)


def _origins(page: RowsPage | None, fetched: fetching.Fetched | None) -> tuple[tuple[str, int], ...]:
    return () if page is None else page.origins if fetched is None else fetched.origins(page)


def _is_full(found: ReadRows) -> bool:
    return found.page is not None and found.page.position is not None
