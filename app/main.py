"""The app: navigation, and the notice at the top of every page. The pages are in screens/."""

from pathlib import Path

import memory
import session
import streamlit as st
from guard import LOOPBACK, is_known
from guide import tour
from machine import jobs

from endofm_lab import NOTICE

st.set_page_config(page_title="endofm_lab", page_icon=Path(__file__).with_name("icon.svg"), layout="wide")

# A second check besides the guard in serve.py, for users who start this file with `streamlit run`.
host = st.context.headers.get("Host")
if host is not None and not is_known(host, st.get_option("server.allowedHosts") or LOOPBACK):
    st.error("The app does not accept this host name. Open it at 127.0.0.1.")
    st.stop()

PREDICTION = st.Page("screens/prediction.py", title="Prediction", icon=":material/play_circle:")
page = st.navigation(
    [
        st.Page("screens/home.py", title="Home", icon=":material/home:", default=True),
        PREDICTION,
        st.Page("screens/attention.py", title="Attention", icon=":material/visibility:"),
        st.Page("screens/embeddings.py", title="Embeddings", icon=":material/scatter_plot:"),
        st.Page("screens/data.py", title="Data", icon=":material/dataset:"),
        st.Page("screens/views.py", title="Views", icon=":material/crop:", url_path="views"),
        st.Page("screens/models.py", title="Models", icon=":material/deployed_code:"),
        st.Page("screens/training.py", title="Training", icon=":material/model_training:"),
        st.Page("screens/comparison.py", title="Comparison", icon=":material/balance:"),
        st.Page("screens/jobs.py", title="Jobs", icon=":material/hourglass:"),
    ]
)
if page.url_path == "" and session.is_address_of_a_video():
    st.switch_page(PREDICTION, query_params=st.query_params.to_dict())
st.caption(f"{NOTICE} Nothing leaves this machine.")  # in the main area, because the sidebar can be hidden
st.session_state["the page"] = page.url_path
session.ask_for_paths()
tour.show()
jobs.show_line()
try:
    page.run()
finally:
    memory.give_back()
