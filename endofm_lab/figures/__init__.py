"""Plotly figures, the same in notebooks, the app and reports."""
