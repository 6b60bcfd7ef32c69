"""Raw files to splits."""
