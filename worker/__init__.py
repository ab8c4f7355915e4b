"""One GPU: claim, batch, denoise, decode, deliver."""
