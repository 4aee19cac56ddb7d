"""``depo route``: fit, evaluate, calibrate, decide, and the gateway's configuration."""
