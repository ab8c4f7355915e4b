"""Code that trains models; nothing that serves images imports it."""
