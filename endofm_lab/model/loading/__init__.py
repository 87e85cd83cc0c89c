"""Known weights files: their formats, where they are, and how they are loaded into a network."""
