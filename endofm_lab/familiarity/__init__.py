"""Whether a model can be believed on a video: how far its clips are from the training clips, and picture quality."""
