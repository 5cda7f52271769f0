"""AuraLink Hub: real-time signaling and presence in front of LiveKit."""
