"""The course as pages: lessons that are executed and shown without running anything."""
