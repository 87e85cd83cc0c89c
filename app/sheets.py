"""Sheets of pictures that fit every width of the page: as many in a row as there is room for, each above its title."""

from collections.abc import Sequence

import numpy as np
import streamlit as st
from texts import plain

PICTURE_PX = 132  # three in a window of 900 px


def show_sheet(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Show pictures (H, W, 3) uint8 with their titles."""
    sheet = st.container(horizontal=True, gap="small")
    for picture, title in zip(pictures, titles, strict=True):
        cell = sheet.container(width=PICTURE_PX, gap=None)
        cell.image(picture, width=PICTURE_PX)
        cell.caption(plain(title))
