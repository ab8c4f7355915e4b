"""The small Stable Diffusion that ships (`models/scenes`): its scenes, its training and its checker."""
