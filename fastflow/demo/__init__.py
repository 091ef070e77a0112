"""`fastflow demo`: both directions of the knob on two small models that it makes itself, in minutes on a CPU."""
