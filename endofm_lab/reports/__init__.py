"""Stand-alone HTML reports."""
