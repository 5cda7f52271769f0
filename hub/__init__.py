"""AuraLink Hub: real-time signaling and presence in front of LiveKit."""

__version__ = "0.1.0"
