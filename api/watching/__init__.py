"""Watching a job or the whole farm: any number of clients, without a thread for each.

`watcher` turns what the ledger tells into something to wait for; `events` and `farm_events` tell it on the wire.
"""
