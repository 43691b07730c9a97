"""Colours: the same one for the same arm in every picture, told apart by all kinds of sight."""

COLOURS = {"full": "#999999", "base": "#0072b2", "tuned": "#d55e00"}
