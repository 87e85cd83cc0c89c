"""The training loop of the project, its schedules, its order of data and its checkpoints."""
