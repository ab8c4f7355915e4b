"""A farm with simulated GPUs: everything but the device and the bucket is the real thing."""
