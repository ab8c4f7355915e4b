"""Prompts on their way into a model: their grammar, their encoders, and a memory of what was encoded."""
