"""What a node knows, as plain values. Pure: no asyncio, no clock, no driver."""
