"""What the API and the workers must agree on: jobs, catalog, ledger, queue, storage, settings, errors."""
