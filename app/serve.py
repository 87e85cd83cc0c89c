"""The app behind its guard, as `endofm-lab app` serves it."""

import os

import streamlit as st
from components.viewer.frames import ROUTES
from guard import LOOPBACK, Guard
from memory import use_few_heaps
from starlette.middleware import Middleware

use_few_heaps()
hosts = st.get_option("server.allowedHosts") or LOOPBACK
password = os.environ.get("ENDOFM_LAB_PASSWORD") or None

app = st.App("main.py", routes=ROUTES, middleware=[Middleware(Guard, hosts=hosts, password=password)])
