"""From folders on disk to models that answer."""
