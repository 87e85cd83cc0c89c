"""The terms of the app, each explained in a sentence or two, for the help of widgets and for the glossary."""

TERMS = {
    "AP50": "Average precision of boxes. A box counts as right if it overlaps a true box by at least half (IoU 0.5).",
    "Attention": "The weights with which a transformer mixes its patches. They show what is combined, but not why.",
    "AUC": "The probability that a random positive case scores higher than a random negative one; 0.5 is a coin toss.",
    "Calibration": (
        "Scores are calibrated if about 80 % of all clips that score 0.8 are right. A temperature fitted on validation "
        "patients brings scores closer to that."
    ),
    "Card": "The facts about a model: what it finds, what it was trained on, what was measured, and its limits.",
    "CLS": "The one vector of a transformer that sums up the whole clip, and from which classes are read.",
    "Clip": "A short piece of a video, such as eight frames, which the model sees at once.",
    "Dice": "The overlap of a predicted mask with the true one: 1 if they are the same, 0 if they do not touch.",
    "Embedding": "The vector of numbers that a model computes from a clip. Clips that look alike have similar vectors.",
    "Familiarity": (
        "How far a clip is from what the model learned. Beyond the limit (distance 1) its scores mean nothing."
    ),
    "Finding": "A stretch of the video in which a class reaches the threshold. A reader confirms or rejects it.",
    "Generated": "Drawn by this software from random numbers. It shows no patient, and carries a mark in its pixels.",
    "Head": "The last part of a model, which turns its features into classes, masks or boxes.",
    "Interval": (
        "The range in which a result would lie in 95 % of repetitions with other patients; found by resampling them."
    ),
    "Manifest": "The table of a data set: one row per clip or image, with its label, its patient and its split.",
    "Mask": "For every pixel the probability that it belongs to the finding.",
    "Pre-training": "Learning from video without labels, before a small number of labels teaches the task.",
    "Probe": "A simple classifier on frozen features. It measures how much the features already tell.",
    "Relevance": "A map of the patches that a class score is based on, from attention and its gradient.",
    "Rollout": "Attention multiplied over all layers: how much of each patch arrives in the last layer.",
    "Run": "The folder of a finished training or test, with its settings, predictions and metrics.",
    "Segment": "Neighbouring frames of a study that have the same class after smoothing.",
    "Split": "The division of a data set into training, validation and test. No patient may be in two of them.",
    "Store": "The folder with one embedding for every row of a manifest.",
    "Study": "A whole examination, scored frame by frame, with findings to confirm or reject.",
    "Threshold": "The lowest score that counts as a finding.",
    "Trust": (
        "How a map was tested: removing what it marks must change the score, and it must differ from a map of shuffled "
        "weights."
    ),
}


def meaning(*terms: str) -> str:
    """The help of a widget or heading in which terms stand: what they mean."""
    return "\n\n".join(f"**{term}**: {TERMS[term]}" for term in terms)
