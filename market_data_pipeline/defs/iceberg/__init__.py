"""The asset of a market's Iceberg tables, and the code that its runs execute."""
