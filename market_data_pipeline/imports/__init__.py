"""Import of older caches: find their files, read their rows, and store those that the lake may have.

Sources are read, never written. Imported days are provisional until their archive is fetched. Only ``cli`` and
``client`` see this room; ``client`` reads, and does not import.
"""
