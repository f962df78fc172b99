"""Ctrl-C works in the tests even where the suite was started in the background, which ignores it."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
