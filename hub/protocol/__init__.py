"""What travels: refusals, and the messages, answers and events of each noun, as frozen structs. Pure."""
