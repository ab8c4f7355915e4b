"""Who may enter, and do what: every request passes here before it reaches an endpoint.

Keys and who shows one, what each opens, how often; what browsers are held to; whose pictures a job may start from; the
log of all that was changed or refused. The threats, and what is done about each, are in docs/security.md.
"""
