"""Models on a device: one class per family, and the loading of their weights."""
