"""The app: navigation and the notice that stands on every page. Pages are in views/."""

import streamlit as st

st.set_page_config(page_title="endofm_lab", page_icon=":material/stethoscope:", layout="wide")

page = st.navigation(
    [
        st.Page("views/prediction.py", title="Prediction", icon=":material/play_circle:", default=True),
        st.Page("views/attention.py", title="Attention", icon=":material/visibility:"),
        st.Page("views/embeddings.py", title="Embeddings", icon=":material/scatter_plot:"),
        st.Page("views/data.py", title="Data", icon=":material/dataset:"),
        st.Page("views/views.py", title="Views", icon=":material/crop:", url_path="views"),
        st.Page("views/training.py", title="Training", icon=":material/model_training:"),
        st.Page("views/comparison.py", title="Comparison", icon=":material/balance:"),
    ]
)
st.sidebar.caption("**For research only.** Not a medical device; not for diagnosis. Nothing leaves this machine.")
page.run()
