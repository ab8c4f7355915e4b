"""A crowd that watches a farm: what bench/watchers.py runs beside the farm itself."""
