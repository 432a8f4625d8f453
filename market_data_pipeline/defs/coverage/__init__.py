"""The coverage asset of a market, and the code that its runs execute."""
