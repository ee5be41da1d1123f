"""Arrays in `.npy` and `.npz` files: headers, members, rows."""
