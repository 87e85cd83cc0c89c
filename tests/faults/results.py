def cases(f, s):
    yield from ()


checkpoints = cards = manifests = recipes = results = scores = cases
