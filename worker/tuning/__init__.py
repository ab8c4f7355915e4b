"""What is measured on the card at hand, and kept: how large batches should be, and what else a card decides."""
