"""An MCP server over the lake: read-only tools for language models. Every answer lists what is missing.

``tools.py`` answers, and ``server.py`` alone knows the SDK. Reading rows and guarding SQL belong to ``client``.
"""
