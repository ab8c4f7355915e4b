"""What the farm's own Python costs: a model that computes nothing in the real engine and the real worker, and PNG."""
