"""Run ``freqtrade download-data`` of spot and futures with ``guide.json`` of the folder that is the first argument.

Prints the data that it stored below the folder, its exit codes and its warnings as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

FOLDER, TIMERANGE = Path(sys.argv[1]), sys.argv[2]
PAIRS = {"spot": "SOL/USDT", "futures": "SOL/USDT:USDT"}


def download(mode, pair):
    config = json.loads((FOLDER / "guide.json").read_text())
    config["exchange"]["pair_whitelist"] = [pair]
    config |= {"stake_currency": "USDT", "dry_run": True, "trading_mode": mode}
    if mode == "futures":
        config["margin_mode"] = "isolated"
    path = FOLDER / f"{mode}.json"
    path.write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("freqtrade")), "download-data", "--config", str(path)]
    command += ["--userdir", str(FOLDER), "--datadir", str(FOLDER / mode), "--data-format-ohlcv", "feather"]
    command += ["--timeframes", "1m", "1h", "--timerange", TIMERANGE]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


found, codes, log = {}, {}, []
for mode, pair in PAIRS.items():
    (FOLDER / mode).mkdir(parents=True)
    done = download(mode, pair)
    codes[mode] = done.returncode
    log += [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    for path in sorted((FOLDER / mode).rglob("*.feather")):
        frame = pd.read_feather(path)
        frame["date"] = frame["date"].astype("int64")
        found[path.name] = frame.values.tolist()
print(json.dumps({"found": found, "codes": codes, "log": log}))
