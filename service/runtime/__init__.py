"""Running graphs: sessions, batches, tensors."""
