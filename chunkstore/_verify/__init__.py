"""Every byte of a container, proven without the reader: a second opinion."""
