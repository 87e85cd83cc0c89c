"""The released segmenter and detector: stem, heads, transformer over frames and their losses."""
