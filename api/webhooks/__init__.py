"""Webhooks by the Standard Webhooks specification: signed messages about jobs, delivered at least once.

That a message is due is a chore in the ledger, written with the state that it tells of; here it is made, signed and
sent. docs/webhooks.md says what a receiver may rely on.
"""
