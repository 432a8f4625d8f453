"""The coverage asset of a market, and what its runs do."""
