"""The `farm` command: it talks HTTP and starts processes."""
