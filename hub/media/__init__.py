"""The media server's door: LiveKit's client library and its types are imported here and nowhere else."""
