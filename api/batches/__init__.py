"""Batches in every form: JSON, JSON Lines, CSV, YAML and text; templates; matrices; the picture of all images.

Every form becomes one JSON document and every document one JobSpec, checked by api.bodies alone. What a template or a
matrix stands for is unfolded into plain prompts before farm.expand resolves them: below, nobody knows of either.
"""
