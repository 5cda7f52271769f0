"""The command line `auralink-hub`: what it says and how it ends. The work is done by the parts it calls."""
