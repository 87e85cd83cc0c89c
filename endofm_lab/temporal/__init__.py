"""Models of time: from stored vectors of instants to an answer at every instant of a recording."""
