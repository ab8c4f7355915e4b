"""What images look like while they are made, for whoever watches; nothing at all while nobody does.

    watched.py    which jobs are watched, until when, and how closely
    sketch.py     a VAE's decoder as one product, learned from what it has decoded
    previews.py   at a step: who is due, and a copy of its latents; on a thread: the small picture, and where it goes

The engine's thread copies numbers and goes on; it waits for nothing here. What fails here costs previews, never images:
these are the same to the bit whoever watches.
"""

from worker.previews.previews import Previews

__all__ = ["Previews"]
