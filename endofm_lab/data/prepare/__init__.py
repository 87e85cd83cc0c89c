"""From a data set as it was published to a manifest: recipes, files, rows, annotations, cuts."""
