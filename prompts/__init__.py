"""Prompt sets and wildcards that ship with the farm: data alone, a package so that they are installed with it."""
