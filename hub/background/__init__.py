"""What a node does by itself: webhooks in, the comparison with LiveKit, and the passing of time."""
