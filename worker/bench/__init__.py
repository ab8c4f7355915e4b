"""`farm bench`: what the card at hand can do, what the engine makes of it, and what diffusers makes of it beside.

Run as `python -m worker.bench`, in a process of its own. Nothing of the worker depends on it.
"""
