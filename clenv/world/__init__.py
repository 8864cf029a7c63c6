"""The machinery behind `clenv.env`: what is drawn when, what is asked when, what is allowed, and what it costs."""
