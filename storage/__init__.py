"""Where the bytes of files are: an S3-compatible object store, or a directory. Knows nothing of the hub.

`store.py` is the port; `s3.py` and `local.py` stand behind it under one behavioural suite. Keys are made by `keys.py`,
never from what a person typed.
"""
