"""What tasks about series in time share: reading time stamps, and the grid they lie on."""
