"""The soak: thousands of units under faults drawn at random, compared with a run that nobody disturbed."""
