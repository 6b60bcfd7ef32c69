"""The Net, its file and what others get of it."""
