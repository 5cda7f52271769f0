"""What a node knows, as plain values. Pure: no event loop, no clock, no driver; `now` comes in, changes come out."""
