"""The version of treadle: the one place it is written down; packaging and the extension read it here."""

__version__ = "0.1.0"
