"""Video in, model input out: reading, choosing clips, the one normalisation, and generated endoscopy."""
