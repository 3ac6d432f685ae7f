"""A stand-in for `rmm.allocators`."""
