"""Assets about all symbols of a market: snapshots of exchangeInfo."""
